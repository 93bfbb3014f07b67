// Run inside an empty project that has installed the tarball: loads the package and its simulations as ES modules and uses them.
import * as saga from 'saga-scheduler';
import * as simulation from 'saga-scheduler/simulate';
import use from './smoke.cjs';

await use(saga, simulation);
