/**
 * Two ways to time an operation: throughput by the package `benchmark` (it repeats until the spread is small), latency by a
 * loop of our own that keeps every sample, because a mean hides the tail.
 */
import Benchmark from 'benchmark';

/** One line of the report. Nanoseconds are per `unit`, not per call, where an operation does several units of work. */
export interface Measurement {
  group: string;
  name: string;
  unit: string;
  /** Nanoseconds a unit: mean of the benchmark's cycles. */
  nanoseconds: number;
  /** Relative margin of error of that mean in per cent (95 % confidence), as `benchmark` gives it. */
  marginPercent: number;
  /** Nanoseconds a call (not a unit): quantiles of single calls, clock overhead included (some 30 ns). */
  call?: { p50: number; p99: number; samples: number };
}

/** Runs `operation` until `benchmark` is satisfied, then `samples` times with the clock around each call. */
export function measure(
  group: string,
  name: string,
  unit: string,
  units: number,
  operation: () => void,
  samples = 20_000,
): Measurement {
  const bench = new Benchmark(name, operation, { maxTime: 1, minSamples: 20 });
  bench.run();
  if (bench.error !== undefined) throw bench.error;
  const times = new Float64Array(samples);
  for (let i = 0; i < samples; ++i) {
    const before = process.hrtime.bigint();
    operation();
    times[i] = Number(process.hrtime.bigint() - before);
  }
  times.sort();
  return {
    group,
    name,
    unit,
    nanoseconds: (bench.stats.mean * 1e9) / units,
    marginPercent: bench.stats.rme,
    call: { p50: times[Math.floor(samples * 0.5)] ?? NaN, p99: times[Math.floor(samples * 0.99)] ?? NaN, samples },
  };
}
