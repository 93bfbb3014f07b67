/**
 * Clients of agents for tests, demonstrations and evaluations: workloads played against a server.
 */
export { poissonArrivals } from './arrivals.js';
export { WorkloadContent, type TokenRange } from './content.js';
export {
  distributionOf,
  noProgress,
  playTasks,
  type Arrivals,
  type Distribution,
  type PlayHeaders,
  type PlayOptions,
  type PlayProgress,
  type PlayResult,
  type PlayedCall,
  type PlayedTask,
} from './play.js';
export { scaledWorkload } from './scaled.js';
