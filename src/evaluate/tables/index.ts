/**
 * The tables in the order in which they are made.
 */
import type { Table } from '../table.js';
import { ablationTable } from './ablation.js';
import { completionTable } from './completion.js';
import { evictionTable } from './eviction.js';
import { inferenceTable } from './inference.js';
import { memoryTable } from './memory.js';
import { saturationTable } from './saturation.js';
import { searchTable } from './search.js';
import { sensitivityTable } from './sensitivity.js';
import { strategyTable } from './strategy.js';
import { sweepTable } from './sweep.js';
import { tenantsTable } from './tenants.js';
import { toolVarianceTable } from './tool-variance.js';
import { traceTable } from './trace.js';
import { vllmTable } from './vllm.js';

/** Every table of the evaluation. */
export const tables: readonly Table[] = [
  evictionTable,
  completionTable,
  sweepTable,
  saturationTable,
  ablationTable,
  strategyTable,
  toolVarianceTable,
  tenantsTable,
  sensitivityTable,
  memoryTable,
  traceTable,
  inferenceTable,
  searchTable,
  vllmTable,
];
