/** Requests to real servers, and what the engine writes of its block pool (python/vllm_testing/pool_dump.py). */
import { readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Agent, request } from 'undici';
import type { RealServer } from './servers.js';

/** Requests of each traffic. CI sends them all; less is for work on the tests. */
export const requestCount = Number(process.env.SAGA_VLLM_REQUESTS ?? 10_000);

export type Random = (below: number) => number;

/** Numbers from 0 to below `below`, the same for the same seed. */
export function randomOf(seed: number): Random {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

export const randomTokens = (random: Random, count: number): number[] =>
  Array.from({ length: count }, () => 1000 + random(20_000));

export interface Completion {
  status: number;
  promptTokens: number;
  cachedTokens: number;
  tokens: number[];
}

interface CompletionBody {
  usage?: { prompt_tokens?: number; prompt_tokens_details?: { cached_tokens?: number } | null };
  choices?: { token_ids?: number[] }[];
}

const dispatcher = new Agent({ connections: 64, headersTimeout: 300_000, bodyTimeout: 300_000 });

export async function post(
  url: string,
  path: string,
  body: object | undefined,
  options: { headers?: Record<string, string>; signal?: AbortSignal } = {},
): Promise<{ status: number; text: string }> {
  const { statusCode, body: answer } = await request(url + path, {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...options.headers },
    body: body === undefined ? '' : JSON.stringify(body),
    dispatcher,
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  return { status: statusCode, text: await answer.text() };
}

/** One completion of token ids. */
export async function complete(
  server: Pick<RealServer, 'url' | 'model'>,
  prompt: readonly number[],
  more: Record<string, unknown> = {},
  options: { headers?: Record<string, string>; signal?: AbortSignal } = {},
): Promise<Completion> {
  const body = { model: server.model, prompt, max_tokens: 1, temperature: 0, return_token_ids: true, ...more };
  const { status, text } = await post(server.url, '/v1/completions', body, options);
  const answer = status === 200 && more.stream !== true ? (JSON.parse(text) as CompletionBody) : {};
  return {
    status,
    promptTokens: answer.usage?.prompt_tokens ?? 0,
    cachedTokens: answer.usage?.prompt_tokens_details?.cached_tokens ?? 0,
    tokens: answer.choices?.[0]?.token_ids ?? [],
  };
}

export async function resetPrefixCache(server: RealServer): Promise<boolean> {
  const { status, text } = await post(server.url, '/reset_prefix_cache', undefined);
  return status === 200 && text.includes('true');
}

/** The engine's block pool at one moment. */
export interface PoolDump {
  /** Copies by the low 64 bits of the block hash. */
  copies: Map<bigint, number>;
  /** Of all blocks that have a hash. */
  total: number;
  free: number;
}

let dumps = 0;

/** To be called when no other request is there. */
export async function dumpPool(server: RealServer): Promise<PoolDump> {
  const path = join(tmpdir(), `saga-pool-${process.pid}-${dumps++}.json`);
  // A prompt that fills no block changes nothing but what it evicts, and that is dumped.
  const { status } = await complete(server, [7, 8, 9], { vllm_xargs: { saga_pool_dump: path } });
  if (status !== 200) throw new Error(`the pool was not dumped: ${status}`);
  const read = JSON.parse(readFileSync(path, 'utf8')) as Record<'blocks' | 'map', Record<string, number>> & {
    free: number;
  };
  rmSync(path);
  const copies = new Map<bigint, number>();
  let total = 0;
  for (const [key, count] of Object.entries(read.blocks)) {
    if (!key.endsWith('00000000')) throw new Error(`a block of another group: ${key}`);
    if (read.map[key] !== count) throw new Error(`the pool's map has ${read.map[key]} of ${count} blocks ${key}`);
    copies.set(low64(key.slice(0, -8)), count);
    total += count;
  }
  if (Object.keys(read.map).length !== copies.size)
    throw new Error('the map of the pool has blocks that are not there');
  return { copies, total, free: read.free };
}

/** Low 64 bits of a hash in hexadecimal. */
export const low64 = (hex: string): bigint => BigInt(`0x${hex.slice(-16)}`);

export async function until(what: string, holds: () => boolean, ms = 20_000): Promise<void> {
  const end = performance.now() + ms;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`not in time: ${what}`);
    await delay(10);
  }
}
