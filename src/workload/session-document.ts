/**
 * Session documents: one JSON object a session, as kv-cache-tester records them.
 *
 * `id`, `block_size` (default 64), `hash_id_scope` (`global`: equal ids mean equal content in any session; `local`: only
 * within this one), `requests`. A request has `type` `n` (not streamed) or `s` (streamed), `t`, `in`, `out`, `hash_ids`,
 * `think_time` (client time before it), `api_time`, `input_types`, `stop`. An entry of type `subagent` has `agent_id`, `t` and
 * `requests` of its own, whose times count from the entry's `t` where they start below it.
 *
 * Some recorders send each turn twice, streamed and then not: an `s` followed by an `n` with equal `hash_ids` is one call. Its
 * answer, time and duration are the second's, its gap and the kind of its prompt the first's.
 */
import {
  Malformed,
  array,
  integer,
  number,
  object,
  optionalNumber,
  optionalText,
  text,
  type JsonObject,
} from './json-fields.js';
import { promptKindNumber, toolClassNumber } from './columns.js';
import { RequestLog, type SessionRequest } from './request-log.js';
import {
  checkBlocks,
  isId,
  longestText,
  requestLineBlockTokens,
  stopReasonOf,
  type TraceReader,
} from './trace-format.js';

/** Ids of a `local` session are renumbered from here on, beyond any id that a recorder gives. */
const firstLocalId = 2 ** 44;

interface Pending {
  request: SessionRequest;
  type: string;
  ids: readonly number[];
}

/** Reads session documents. All of a trace must have one block size. */
export class SessionDocuments implements TraceReader {
  readonly copies = 0;
  private log: RequestLog | undefined;
  private size: number | undefined;
  private nextLocalId = firstLocalId;

  get blockTokens(): number {
    return this.size ?? requestLineBlockTokens;
  }

  get requests(): number {
    return this.log?.length ?? 0;
  }

  add(document: JsonObject): void {
    const session = text(document, 'id');
    const blockTokens =
      document['block_size'] === undefined ? requestLineBlockTokens : integer(document, 'block_size', 1, 4096);
    if (this.size !== undefined && blockTokens !== this.size) {
      throw new Malformed(`expected "block_size" ${this.size} as in the documents before, found ${blockTokens}`);
    }
    if (this.log?.hasSession(session)) throw new Malformed(`expected a new session, found "${session}" again`);
    const calls = mainAndSubAgents(document, session, blockTokens);
    if (calls.length === 0) throw new Malformed('expected at least one request in "requests"');

    this.size = blockTokens;
    this.log ??= new RequestLog(blockTokens);
    const local = document['hash_id_scope'] === 'local' ? new Map<number, number>() : undefined;
    for (const { request, ids } of calls) {
      this.log.add(request);
      addRuns(this.log, local === undefined ? ids : ids.map((id) => this.localId(local, id)));
    }
  }

  finish(): RequestLog {
    return this.log ?? new RequestLog(this.blockTokens);
  }

  private localId(known: Map<number, number>, id: number): number {
    let own = known.get(id);
    if (own === undefined) known.set(id, (own = this.nextLocalId++));
    return own;
  }
}

/** Calls of the main agent and of its sub-agents, double sends merged. */
function mainAndSubAgents(document: JsonObject, session: string, blockTokens: number): Pending[] {
  const main: JsonObject[] = [];
  const calls: Pending[] = [];
  const agents = new Set(['main']);
  array(document, 'requests').forEach((value, index) => {
    const entry = object(value, `request ${index}`);
    if (entry['type'] !== 'subagent') {
      main.push(entry);
      return;
    }
    let agent = text(entry, 'agent_id');
    while (agents.has(agent)) agent += "'"; // an id that comes back is another run of that agent
    agents.add(agent);
    const inner = array(entry, 'requests').map((request, at) => object(request, `request ${at} of sub-agent ${agent}`));
    const begin = number(entry, 't', 0);
    const first = inner[0];
    const relative = first !== undefined && number(first, 't', 0) < begin;
    calls.push(...callsOf(inner, session, agent, blockTokens, relative ? begin : 0));
  });
  return [...callsOf(main, session, 'main', blockTokens, 0), ...calls];
}

function callsOf(
  requests: readonly JsonObject[],
  session: string,
  agent: string,
  blockTokens: number,
  origin: number,
): Pending[] {
  const calls: Pending[] = [];
  let previousEnd = 0;
  for (const request of requests) {
    const type = text(request, 'type');
    if (type !== 'n' && type !== 's')
      throw new Malformed(`expected "type" to be "n", "s" or "subagent", found "${type}"`);
    const time = origin + number(request, 't', 0);
    const promptTokens = integer(request, 'in', 1, longestText);
    const ids = array(request, 'hash_ids');
    for (const id of ids)
      if (!isId(id)) throw new Malformed('expected "hash_ids" to be whole numbers from 0 to 2^53 - 1');
    checkBlocks(ids.length, promptTokens, blockTokens, 'hash_ids');
    const seconds = optionalNumber(request, 'api_time', 0) ?? Number.NaN;
    const stop = stopReasonOf(optionalText(request, 'stop') ?? '');
    const outputTokens = Math.max(1, integer(request, 'out', 0, longestText));
    const before = calls[calls.length - 1];
    if (before !== undefined && before.type === 's' && type === 'n' && sameIds(before.ids, ids as readonly number[])) {
      Object.assign(before.request, { time, promptTokens, outputTokens, seconds, stopReason: stop });
      before.type = 'm';
    } else {
      const gap = optionalNumber(request, 'think_time', 0) ?? Math.max(0, time - previousEnd);
      calls.push({
        type,
        ids: ids as readonly number[],
        request: {
          session,
          agent,
          number: calls.length,
          time,
          promptTokens,
          outputTokens,
          seconds,
          gapSeconds: calls.length === 0 ? 0 : gap,
          promptKind:
            calls.length === 0
              ? promptKindNumber.start
              : bringsToolResult(request)
                ? promptKindNumber.tool
                : promptKindNumber.user,
          stopReason: stop,
          toolClass: toolClassNumber.none,
        },
      });
    }
    previousEnd = time + (Number.isNaN(seconds) ? 0 : seconds);
  }
  return calls;
}

function bringsToolResult(request: JsonObject): boolean {
  const types = request['input_types'];
  return Array.isArray(types) && types.includes('tool_result');
}

function sameIds(left: readonly number[], right: readonly number[]): boolean {
  return left.length === right.length && left.every((id, index) => id === right[index]);
}

function addRuns(log: RequestLog, ids: readonly number[]): void {
  let from = 0;
  for (let at = 1; at <= ids.length; ++at) {
    if (at < ids.length && ids[at] === (ids[at - 1] as number) + 1) continue;
    log.addRun(ids[from] as number, at - from);
    from = at;
  }
}
