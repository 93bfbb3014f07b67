/** When tasks arrive: the same pattern as the simulator's for the same seed (native/core/sim/cluster.cpp, Cluster::run). */

const mask = (1n << 64n) - 1n;

function mix64(value: bigint): bigint {
  let x = (value + 0x9e3779b97f4a7c15n) & mask;
  x = ((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
  x = ((x ^ (x >> 27n)) * 0x94d049bb133111ebn) & mask;
  return x ^ (x >> 31n);
}

/** xoshiro256**, as native/core/base/random.hpp seeds it. */
class NativeRandom {
  #state: [bigint, bigint, bigint, bigint];

  constructor(seed: bigint) {
    this.#state = [mix64(seed), mix64(seed + 1n), mix64(seed + 2n), mix64(seed + 3n)];
  }

  next(): bigint {
    const state = this.#state;
    const result = (rotate((state[1] * 5n) & mask, 7n) * 9n) & mask;
    const shifted = (state[1] << 17n) & mask;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = rotate(state[3], 45n);
    return result;
  }

  /** With mean 1: of a descending run of uniforms an odd length is accepted, every rejection adds 1 (von Neumann). */
  exponential(): number {
    for (let whole = 0; ; ++whole) {
      const first = this.next() >> 11n;
      let last = first;
      let odd = true;
      for (;;) {
        const next = this.next() >> 11n;
        if (next >= last) break;
        last = next;
        odd = !odd;
      }
      if (odd) return whole + Number(first) * 2 ** -53;
    }
  }
}

function rotate(x: bigint, k: bigint): bigint {
  return ((x << k) | (x >> (64n - k))) & mask;
}

/** Seconds at which each of `tasks` tasks arrives: a Poisson process whose pattern depends on the seed alone, not on the rate. */
export function poissonArrivals(tasks: number, tasksPerSecond: number, seed: number): Float64Array {
  const random = new NativeRandom(mix64(BigInt(seed) ^ 0x6172726976616c73n));
  const gap = 1e6 / tasksPerSecond;
  let units = 0;
  return Float64Array.from({ length: tasks }, () => {
    units += random.exponential();
    return Math.floor(units * gap) / 1e6;
  });
}
