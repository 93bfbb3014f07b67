/** The gateway in a process of its own. Arguments: its configuration as JSON. */
import { Gateway, type GatewayConfig } from '../../dist/esm/gateway/index.js';
import { answerUsage } from './processes.js';

const gateway = await Gateway.start(JSON.parse(process.argv[2] ?? '{}') as GatewayConfig);
const { port } = await gateway.listen();
process.stdout.write(`${JSON.stringify({ url: `http://127.0.0.1:${port}` })}\n`);
answerUsage();
