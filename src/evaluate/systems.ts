/**
 * What is compared: the policies of both simulations by name, with what each is told and which parts are taken out.
 */
import type { SaturationOptions } from '../simulate/backend.js';
import type { CacheHints } from '../workload/hints.js';
import { cachePolicies, clusterPolicies, type CachePolicy, type ClusterPolicy } from '../simulate/options.js';

/** What a policy is told, what is taken out of it, and values of its parameters; whatever is left out is its default. */
export type PolicyChanges = Pick<SaturationOptions, 'hints' | 'without' | 'parameters'>;

/** A scheduler of a cluster. */
export interface System extends Omit<SaturationOptions, 'seed'> {
  /** In tables and charts. */
  name: string;
  ours?: boolean;
}

/** An eviction policy of a cache, and what it is told. */
export interface CacheSystem {
  name: string;
  policy: CachePolicy;
  hints: CacheHints;
}

/** The policy that is this project's. */
export const ours = 'saga' satisfies ClusterPolicy & CachePolicy;

/** What load is measured by and goals are set against: vLLM with prefix caching behind a router by affinity. */
export const reference = 'affinity' satisfies ClusterPolicy;

/** Systems of others that the goals call the best other. */
export const rivals: readonly ClusterPolicy[] = ['kv-router', 'continuum', 'thunder-agent', 'kv-flow', 'saga-paper'];

/** Every policy of cluster mode with its defaults. */
export const systems: readonly System[] = clusterPolicies.map((policy) => systemOf(policy));

/** A policy with its defaults. */
export function systemOf(policy: ClusterPolicy): System {
  return { name: policy, policy, ...(policy === ours ? { ours: true } : {}) };
}

/** Policies of these names. */
export function systemsOf(names: readonly string[]): System[] {
  return systems.filter((system) => names.includes(system.name));
}

/** A policy under another name and with changes; none where there is no policy of that name. */
export function variantOf(base: string, name: string, changes: PolicyChanges): System[] {
  return systemsOf([base]).map((system) => ({ ...system, ...changes, name, ours: false }));
}

/** An eviction policy that is told so much; none where there is no policy of that name. */
export function cacheSystemOf(policy: string, hints: CacheHints = 'none'): CacheSystem[] {
  if (!(cachePolicies as readonly string[]).includes(policy)) return [];
  return [{ name: cacheSystemName(policy, hints), policy: policy as CachePolicy, hints }];
}

/** `saga, end+tool`: the policy and what it is told. */
export function cacheSystemName(policy: string, hints: CacheHints): string {
  return hints === 'none' ? policy : `${policy}, ${hints}`;
}
