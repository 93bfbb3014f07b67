/**
 * A slow, obvious model of one prefix cache, independent of the native one: a trie of pages, and LRU in the atomic model
 * (a call is an instant; its pages age tail first).
 */
import type { CacheSchedule, WorkloadColumns } from '../../src/workload/columns.js';

/** Pages of each call of a schedule as dense ids; equal id means equal prefix. Only full groups of blocks make a page. */
export function pagesOf(
  workload: WorkloadColumns,
  schedule: CacheSchedule,
  pageTokens: number,
): { requests: Uint32Array[]; distinct: number } {
  const group = pageTokens / workload.blockTokens;
  const trie = new Map<number, Map<number, number>>();
  const dense = new Map<number, number>();
  let nodes = 0;
  const requests = Array.from(schedule.call, (call) => {
    const pages: number[] = [];
    let node = -1;
    let position = 0;
    for (let run = workload.callFirstRun[call] as number; run < (workload.callFirstRun[call + 1] as number); ++run) {
      const first = workload.runFirstId[run] as number;
      for (let id = first; id < first + (workload.runLength[run] as number); ++id) {
        let children = trie.get(id);
        if (children === undefined) trie.set(id, (children = new Map<number, number>()));
        let next = children.get(node);
        if (next === undefined) children.set(node, (next = nodes++));
        node = next;
        if (++position % group === 0) {
          let page = dense.get(node);
          if (page === undefined) dense.set(node, (page = dense.size));
          pages.push(page);
        }
      }
    }
    return Uint32Array.from(pages);
  });
  return { requests, distinct: dense.size };
}

/** Hit rate of a cache without bound, and the share of the hits whose page another task brought. */
export function infiniteHitRate(
  requests: readonly Uint32Array[],
  owners: ArrayLike<number>,
): { rate: number; other: number } {
  const owner = new Map<number, number>();
  let accesses = 0;
  let hits = 0;
  let other = 0;
  requests.forEach((pages, index) => {
    accesses += pages.length;
    for (const page of pages) {
      const known = owner.get(page);
      if (known === undefined) owner.set(page, owners[index] as number);
      else {
        ++hits;
        if (known !== owners[index]) ++other;
      }
    }
  });
  return { rate: hits / accesses, other: other / accesses };
}

/** Hit rate of LRU. */
export function lruHitRate(requests: readonly Uint32Array[], pagesOfCache: number): number {
  const cache = new Set<number>();
  let accesses = 0;
  let hits = 0;
  for (const pages of requests) {
    accesses += pages.length;
    for (const page of pages) {
      if (!cache.has(page)) break;
      ++hits;
    }
    for (let at = pages.length - 1; at >= 0; --at) {
      cache.delete(pages[at] as number);
      cache.add(pages[at] as number);
    }
    for (const oldest of cache) {
      if (cache.size <= pagesOfCache) break;
      cache.delete(oldest);
    }
  }
  return hits / accesses;
}
