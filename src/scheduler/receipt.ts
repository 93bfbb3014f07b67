/** Why a call went where: what was known when it was placed, and by `saga` the price of the alternatives. */
import type { Call } from './call.js';
import { twoTo32 } from './checks.js';
import { notTold } from './told.js';
import { reasons, type PlacementReason, type Tier } from './vocabulary.js';
import type { Worker } from './worker.js';

/**
 * What was known when a call was granted its worker: when it was placed or, where it was held until its blocks were copied there, before.
 * Counts are blocks.
 */
export interface Receipt {
  /** Where the call goes. */
  readonly worker: Worker;
  readonly reason: PlacementReason;
  /** Full blocks of the prompt. */
  readonly promptBlocks: number;
  /** Leading blocks on that worker, as reported: in GPU memory; in GPU or host memory; in any tier. */
  readonly matchedBlocks: Readonly<Record<Tier, number>>;
  /** The longest leading match in GPU memory on any active worker, and the smallest worker id that has it, both as of then. */
  readonly longestMatch: { readonly blocks: number; readonly worker: number | undefined };
  /** Open calls of that worker before this one. */
  readonly openCalls: number;
  /** Blocks in use there by running calls, before this one. */
  readonly blocksInUse: number;
  /** Workers there were to choose from: active, and not drained. */
  readonly activeWorkers: number;
  /** Its place in the worker's queue, if the worker has priorities: smaller goes first. 0 but with `saga`. */
  readonly priority: number;
  /** How often this call was placed before (it lost its worker), modulo 2^16. */
  readonly placement: number;
  /** Microseconds. */
  readonly decidedAt: number;
}

/** What the price of an alternative is made of: predicted seconds of delay, to the call itself and to those around it. */
export interface Price {
  /** Until the worker has room. */
  readonly wait: number;
  /** Computing what of the prompt is not there. */
  readonly prefill: number;
  /** Copying what is pulled. */
  readonly transfer: number;
  /** Generating the answer. */
  readonly decode: number;
  /** What the call costs others there: longer steps, its prefill in their way. */
  readonly interference: number;
  /** What it pushes out of memory. */
  readonly displacement: number;
  /** The sum. */
  readonly total: number;
}

/** Why a call went where it did. */
export interface Explanation {
  /** A sentence or three for people; its wording may change. */
  readonly text: string;
  readonly worker: Worker;
  readonly reason: PlacementReason;
  /** Leading blocks in GPU memory there, as reported, and the full blocks of the prompt. */
  readonly matchedBlocks: number;
  readonly promptBlocks: number;
  /** What follows is of the policy `saga`; with the others all of it is `undefined`. */
  readonly saga: SagaExplanation | undefined;
}

/** What `saga` weighed. Times are microseconds. */
export interface SagaExplanation {
  /** The price of the worker, and its alternative: of staying where the agent was, if that was one. */
  readonly price: Price;
  readonly holderPrice: Price | undefined;
  /** Where the call's agent was; `undefined` also where that worker is gone and another one has its id. */
  readonly holder: Worker | undefined;
  /** How far the worker's reports of what it holds were believed, 0 to 1 ({@link Worker.trust}). */
  readonly trust: number;
  /** Whom its blocks are pulled from; `undefined` also where that worker is gone and another one has its id. */
  readonly source: Worker | undefined;
  readonly submittedAt: number;
  /** How long it waited in the fair queue, from submission or from when its worker was lost. */
  readonly queued: number;
  readonly grantedAt: number;
}

/** The receipt of a decision whose words begin at `from`. */
export function receiptAt(words: Uint32Array, from: number, workers: readonly Worker[]): Receipt {
  const word = (at: number): number => words[from + at] as number;
  const longestWorker = word(10);
  return {
    worker: workers[word(1)] as Worker,
    reason: reasons[word(4)] as PlacementReason,
    promptBlocks: word(5),
    matchedBlocks: { gpu: word(6), host: word(7), disk: word(8) },
    longestMatch: { blocks: word(9), worker: longestWorker === twoTo32 - 1 ? undefined : longestWorker },
    openCalls: word(11),
    blocksInUse: word(12),
    activeWorkers: word(13) & 0xffff,
    priority: word(13) >> 16,
    placement: word(0) >>> 16,
    decidedAt: word(14) + word(15) * twoTo32,
  };
}

/** Of a policy without prices. */
export function explainReceipt(call: Call, receipt: Receipt): Explanation {
  const { worker, reason, promptBlocks, matchedBlocks } = receipt;
  const known: string[] = [
    `${receipt.openCalls} calls open and ${receipt.blocksInUse} blocks in use there`,
    `${receipt.activeWorkers} workers to choose from`,
  ];
  if (receipt.longestMatch.worker !== undefined)
    known.unshift(`longest match ${receipt.longestMatch.blocks} blocks, on worker ${receipt.longestMatch.worker}`);
  return {
    text: `${goes(call, worker, reason, matchedBlocks.gpu, promptBlocks)}. ${capital(known.join('; '))}.`,
    worker,
    reason,
    matchedBlocks: matchedBlocks.gpu,
    promptBlocks,
    saga: undefined,
  };
}

/**
 * `numbers`: as `native.Engine.receipt` writes them. `workerThen`: who had an id when so many workers had been added.
 *
 * @returns `undefined` where it is not known any more who that worker was
 */
export function explainPrice(
  call: Call,
  numbers: Float64Array,
  workerThen: (id: number, added: number) => Worker | undefined,
): Explanation | undefined {
  const number = (at: number): number => numbers[at] as number;
  const workerAt = (at: number): Worker | undefined =>
    number(at) === notTold ? undefined : workerThen(number(at), number(23));
  const worker = workerAt(1);
  if (worker === undefined) return undefined;
  const reason = reasons[number(0)] as PlacementReason;
  const [source, holder] = [workerAt(2), workerAt(3)];
  const [matchedBlocks, promptBlocks, queued] = [number(4), number(5), number(8)];
  const price = priceAt(numbers, 10);
  const staying = priceAt(numbers, 16);
  const trustPerMille = number(22);
  const holderPrice = staying.total > 0 ? staying : undefined;
  const from = source === undefined || source === worker ? '' : ` from worker ${source.id}`;
  const sentences = [`${goes(call, worker, `${reason}${from}`, matchedBlocks, promptBlocks)}: ${terms(price)}`];
  if (holderPrice !== undefined && holder !== undefined && holder !== worker)
    sentences.push(`Staying on worker ${holder.id}: ${terms(holderPrice)}`);
  if (trustPerMille < 1000 && matchedBlocks > 0)
    sentences.push(`Its match counts as ${Math.floor((matchedBlocks * trustPerMille) / 1000)} blocks`);
  if (queued > 0) sentences.push(`It waited ${(queued / 1e6).toFixed(3)} s in the queue`);
  return {
    text: `${sentences.join('. ')}.`,
    worker,
    reason,
    matchedBlocks,
    promptBlocks,
    saga: {
      price,
      holderPrice,
      holder,
      trust: trustPerMille / 1000,
      source,
      submittedAt: number(7),
      queued,
      grantedAt: number(9),
    },
  };
}

function goes(call: Call, worker: Worker, reason: string, matched: number, blocks: number): string {
  return `Call ${call.id} goes to worker ${worker.id} (${reason}; ${matched} of ${blocks} blocks there)`;
}

function terms(price: Price): string {
  const { total, ...rest } = price;
  const parts = Object.entries(rest).flatMap(([name, value]) => (value > 0 ? [`${name} ${value.toFixed(3)}`] : []));
  return `${total.toFixed(3)} s${parts.length > 1 ? ` = ${parts.join(' + ')}` : ''}`;
}

function priceAt(numbers: Float64Array, from: number): Price {
  const [wait = 0, prefill = 0, transfer = 0, decode = 0, interference = 0, displacement = 0] = numbers.subarray(from);
  const total = wait + prefill + transfer + decode + interference + displacement;
  return { wait, prefill, transfer, decode, interference, displacement, total };
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
