// Run inside an empty project that has installed the tarball: loads the package as an ES module and uses it.
import * as saga from 'saga-scheduler';
import use from './smoke.cjs';

use(saga);
