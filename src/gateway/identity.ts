/**
 * Whose call a request is: its tenant, the workflow and agent that its client names, and what it says of what comes next.
 *
 * Nothing here can fail a request but a wrong key: clients send what they like.
 */
import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import type { CallHints } from '../graph/call-hints.js';
import { workflowIdOf } from '../lineage.js';
import type { Body } from './body.js';
import type { GatewayConfig, TenantConfig } from './config.js';
import { GatewayError } from './errors.js';

/** Who sends a request. */
export interface Tenant {
  readonly name: string;
  readonly cacheSalt: string | undefined;
}

/** A request as far as its client describes it. */
export interface Named {
  /** The workflow's name; `undefined`: told by lineage. */
  workflow: string | undefined;
  agent: string | undefined;
  /** Nothing follows of this agent, or of the workflow where no agent is named. */
  final: boolean;
  /** What engines know as `session_id`. */
  session: string | undefined;
  hints: CallHints | undefined;
}

const mostTenantNames = 60;

/** Checks keys and tells tenants apart. */
export class Tenants {
  /** Digests, so that comparing takes the same time for every key. */
  readonly #keys: { digest: Buffer; tenant: Tenant; operator: boolean }[] = [];
  readonly #byName = new Map<string, Tenant>();
  readonly #trustHeader: boolean;
  readonly #salts: Buffer | string | undefined;
  readonly #default: Tenant = { name: 'default', cacheSalt: undefined };

  constructor(
    config: Pick<
      GatewayConfig,
      'apiKeys' | 'adminKeys' | 'tenants' | 'trustTenantHeader' | 'saltTenants' | 'tenantSecret'
    >,
  ) {
    this.#trustHeader = config.trustTenantHeader ?? false;
    this.#salts = config.saltTenants === false ? undefined : (config.tenantSecret ?? randomBytes(32));
    for (const { name, cacheSalt, apiKeys } of config.tenants ?? ([] as readonly TenantConfig[])) {
      const tenant: Tenant = { name, cacheSalt };
      this.#byName.set(name, tenant);
      for (const key of apiKeys ?? []) this.#keys.push({ digest: digestOf(key), tenant, operator: false });
    }
    this.#default = this.#byName.get('default') ?? this.#default;
    const { apiKeys = [], adminKeys } = config;
    for (const key of apiKeys)
      this.#keys.push({ digest: digestOf(key), tenant: this.#default, operator: adminKeys === undefined });
    for (const key of adminKeys ?? [])
      this.#keys.push({ digest: digestOf(key), tenant: this.#default, operator: true });
  }

  /** Whether keys are asked for. */
  get closed(): boolean {
    return this.#keys.length > 0;
  }

  /**
   * The tenant of a request, by its headers alone.
   *
   * @throws GatewayError `invalid_api_key`, `too_many_tenants`
   */
  of(headers: IncomingHttpHeaders): Tenant {
    return this.identify(headers).tenant;
  }

  /** The same, and whether who sends it may see everything. Whom a header names is somebody behind a proxy, whatever that proxy's key is. */
  identify(headers: IncomingHttpHeaders): { tenant: Tenant; operator: boolean } {
    let tenant = this.#default;
    let operator = !this.closed;
    if (this.closed) {
      const key = keyOf(headers);
      if (key === undefined) {
        throw new GatewayError('invalid_api_key', 'a key is needed: "Authorization: Bearer KEY" or "X-API-Key: KEY"', {
          closes: true,
        });
      }
      const digest = digestOf(key);
      let found: { tenant: Tenant; operator: boolean } | undefined;
      for (const known of this.#keys)
        if (timingSafeEqual(known.digest, digest) && found?.operator !== true) found = known;
      if (found === undefined) throw new GatewayError('invalid_api_key', 'the key is not known', { closes: true });
      ({ tenant, operator } = found);
    }
    if (!this.#trustHeader || tenant !== this.#default) return { tenant, operator };
    const name = one(headers['x-saga-tenant']) ?? one(headers['x-llm-d-inference-fairness-id']);
    if (name === undefined || name === '' || name.length > 256) return { tenant, operator };
    if (this.closed) operator = false;
    const known = this.#byName.get(name);
    if (known !== undefined) return { tenant: known, operator };
    // Names that nobody configured: the scheduler keeps them for good, so only so many.
    if (this.#byName.size >= mostTenantNames)
      throw new GatewayError('too_many_tenants', `${mostTenantNames} tenants are known already; list them in tenants`, {
        closes: true,
      });
    const cacheSalt =
      this.#salts === undefined ? undefined : createHmac('sha256', this.#salts).update(name).digest('base64url');
    const made: Tenant = { name, cacheSalt };
    this.#byName.set(name, made);
    return { tenant: made, operator };
  }
}

function keyOf(headers: IncomingHttpHeaders): string | undefined {
  const bearer = /^bearer +(\S+)\s*$/i.exec(headers.authorization ?? '');
  return bearer?.[1] ?? one(headers['x-api-key']);
}

function digestOf(key: string): Buffer {
  return createHash('sha256').update(key).digest();
}

function one(value: string | string[] | undefined): string | undefined {
  return Array.isArray(value) ? value[0] : value;
}

/** One of these is there where a client names a session: see {@link workflowIdOf}. */
const sessionHeaders = [
  'x-saga-session-id',
  'x-dynamo-session-id',
  'x-claude-code-session-id',
  'session-id',
  'thread-id',
  'x-session-id',
] as const;

/** Reads headers and body. */
export function nameOf(headers: IncomingHttpHeaders, body: Body): Named {
  const id = sessionHeaders.some((name) => headers[name] !== undefined) ? workflowIdOf(headers) : undefined;
  const session = id === undefined ? sessionOf(body) : undefined;
  return {
    workflow: id?.workflow ?? session,
    agent: id?.agent,
    final: id?.final ?? isTrue(one(headers['x-saga-session-final'])),
    session: id?.workflow ?? session,
    hints: hintsOf(headers, body),
  };
}

/** A session that the body names: vLLM's `session_id`, or the key by which OpenAI's clients name a conversation. */
function sessionOf(body: Body): string | undefined {
  for (const name of ['session_id', 'prompt_cache_key']) {
    const member = body.member(name);
    if (member?.type !== 'string' || member.end - member.start > 1026) continue;
    const value = body.value(name) as string;
    if (value !== '') return value;
  }
  return undefined;
}

function hintsOf(headers: IncomingHttpHeaders, body: Body): CallHints | undefined {
  const given = one(headers['x-saga-next-tool']);
  const tool = given === undefined || given === '' || given.length > 256 ? undefined : given;
  const seconds = numberOf(headers['x-saga-expected-seconds'], 1e9);
  const output = numberOf(headers['x-saga-expected-output-tokens'], 2 ** 31) ?? outputOf(body);
  if (tool === undefined && seconds === undefined && output === undefined) return undefined;
  const hints: { -readonly [Field in keyof CallHints]: CallHints[Field] } = {};
  if (tool !== undefined) hints.nextTool = tool;
  if (seconds !== undefined) hints.expectedSeconds = seconds;
  if (output !== undefined) hints.expectedOutputTokens = Math.floor(output);
  return Object.keys(hints).length === 0 ? undefined : hints;
}

/** Dynamo's `nvext.agent_hints.osl`: the length that the client expects of the answer. */
function outputOf(body: Body): number | undefined {
  const member = body.member('nvext');
  if (member?.type !== 'object' || member.end - member.start > 4096) return undefined;
  const hints = (body.value('nvext') as { agent_hints?: { osl?: unknown } | null }).agent_hints;
  const osl = hints?.osl;
  return typeof osl === 'number' && osl >= 0 && osl <= 2 ** 31 ? osl : undefined;
}

function numberOf(value: string | string[] | undefined, most: number): number | undefined {
  const text = one(value);
  if (text === undefined || !/^\d{1,12}(?:\.\d{1,9})?$/.test(text)) return undefined;
  const number = Number(text);
  return number <= most ? number : undefined;
}

function isTrue(value: string | undefined): boolean {
  return value !== undefined && /^(?:true|1)$/i.test(value);
}
