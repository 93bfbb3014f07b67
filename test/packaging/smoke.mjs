// Run inside an empty project that has installed the tarball: loads the package and its other entry points as ES modules and uses them.
import * as saga from 'saga-scheduler';
import * as graph from 'saga-scheduler/graph';
import * as simulation from 'saga-scheduler/simulate';
import use from './smoke.cjs';

await use(saga, simulation, graph);
