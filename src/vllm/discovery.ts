/**
 * Where servers come from besides a list: DNS, asked again every few seconds, or the EndpointSlices of a Kubernetes service
 * (kubernetes.ts). A discovery tells the whole list each time; an answer that fails changes nothing.
 */
import { resolve4, resolve6, resolveSrv } from 'node:dns/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { checkInteger, checkOneOf, checkOptions, checkText, describe } from '../check.js';
import { SagaArgumentError } from '../errors.js';
import { startKubernetes } from './kubernetes.js';
import {
  checkServer,
  type DiscoverOptions,
  type DnsDiscovery,
  type FoundServer,
  type ServerOptions,
} from './options.js';

export interface DiscoveryEvents {
  /** All servers that there are now. */
  found(servers: readonly ServerOptions[]): void;
  failed(error: unknown): void;
}

export interface Discovery {
  /** The first answer, or failure, is there. */
  readonly first: Promise<void>;
  close(): Promise<void>;
}

/** Names asked by DNS: replaced by tests. */
export interface Resolver {
  resolve4(host: string): Promise<string[]>;
  resolve6(host: string): Promise<string[]>;
  resolveSrv(host: string): Promise<{ name: string; port: number }[]>;
}

const mostServers = 1024;

/** @throws SagaArgumentError for a wrong setting */
export function startDiscovery(options: DiscoverOptions, events: DiscoveryEvents): Discovery {
  checkDiscovery(options);
  switch (options.type) {
    case 'static':
      events.found(options.servers);
      return { first: Promise.resolve(), close: () => Promise.resolve() };
    case 'dns':
      return startDns(options, events);
    case 'kubernetes':
      return startKubernetes(options, events);
  }
}

/** @throws SagaArgumentError */
export function checkDiscovery(options: DiscoverOptions): void {
  checkOptions(options);
  checkOneOf('discover.type', options.type, ['static', 'dns', 'kubernetes']);
  switch (options.type) {
    case 'static':
      options.servers.forEach((server, i) => checkServer(`discover.servers[${i}]`, server));
      return;
    case 'dns':
      if (!/^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$/.test(checkText('discover.host', options.host, 253)))
        throw new SagaArgumentError(`discover.host must be a DNS name, got ${describe(options.host)}`);
      checkOneOf('discover.record', options.record ?? 'A', ['A', 'AAAA', 'SRV']);
      if (options.record !== 'SRV') checkInteger('discover.port', options.port, 1, 65_535);
      checkInteger('discover.everySeconds', options.everySeconds ?? 10, 1, 3600);
      break;
    case 'kubernetes': {
      const name = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;
      if (!name.test(checkText('discover.service', options.service)))
        throw new SagaArgumentError(`discover.service must be the name of a service, got ${describe(options.service)}`);
      if (options.namespace !== undefined && !name.test(checkText('discover.namespace', options.namespace)))
        throw new SagaArgumentError(`discover.namespace must be the name of one, got ${describe(options.namespace)}`);
      if (typeof options.port === 'number') checkInteger('discover.port', options.port, 1, 65_535);
      else checkText('discover.port', options.port ?? '', 63);
      checkInteger('discover.resyncSeconds', options.resyncSeconds ?? 300, 10, 86_400);
    }
  }
  // The settings that all found servers share are wrong now or never.
  serverAt(options.server, '127.0.0.1', 1);
}

/** The server at an address that was found. @throws SagaArgumentError for settings that are wrong */
export function serverAt(common: FoundServer | undefined, address: string, port: number): ServerOptions {
  const { scheme = 'http', eventsPort, replayPort, directivesPort, ...rest } = common ?? {};
  const host = address.includes(':') ? `[${address}]` : address;
  const at = (name: string, number: number | undefined): string | undefined =>
    number === undefined ? undefined : `tcp://${host}:${checkInteger(`discover.server.${name}`, number, 1, 65_535)}`;
  checkOneOf('discover.server.scheme', scheme, ['http', 'https']);
  const endpoints = {
    events: at('eventsPort', eventsPort),
    replay: at('replayPort', replayPort),
    directives: at('directivesPort', directivesPort),
  };
  const told = Object.fromEntries(Object.entries(endpoints).filter(([, endpoint]) => endpoint !== undefined));
  return checkServer('discover.server', { ...rest, ...told, url: `${scheme}://${host}:${port}` });
}

/** DNS: every address is a server; with SRV every target and its port. */
export function startDns(
  options: DnsDiscovery,
  events: DiscoveryEvents,
  resolver: Resolver = { resolve4, resolve6, resolveSrv },
): Discovery {
  const stop = new AbortController();
  const { host, port = 0, record = 'A', everySeconds = 10, server } = options;
  const ask = async (): Promise<ServerOptions[]> => {
    if (record !== 'SRV') {
      const addresses = await (record === 'A' ? resolver.resolve4(host) : resolver.resolve6(host));
      return addresses.map((address) => serverAt(server, address, port));
    }
    return (await resolver.resolveSrv(host)).map((target) => serverAt(server, target.name, target.port));
  };
  const once = async (): Promise<void> => {
    try {
      const servers = await ask();
      if (!stop.signal.aborted) events.found(servers.sort((a, b) => (a.url < b.url ? -1 : 1)).slice(0, mostServers));
    } catch (error) {
      if (stop.signal.aborted) return;
      // The name has no addresses: a service without ready endpoints. Other failures say nothing about servers.
      const { code } = error as { code?: unknown };
      if (code === 'ENODATA' || code === 'ENOTFOUND') events.found([]);
      events.failed(error);
    }
  };
  const first = once();
  const run = async (): Promise<void> => {
    await first;
    while (!stop.signal.aborted) {
      await delay(everySeconds * 1000, undefined, { signal: stop.signal, ref: false }).catch(() => {});
      if (!stop.signal.aborted) await once();
    }
  };
  void run();
  return {
    first,
    close: () => {
      stop.abort();
      return Promise.resolve();
    },
  };
}
