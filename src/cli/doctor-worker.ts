/** `saga doctor --directives ENDPOINT`: what a worker's connector can do, and why not more. */
import { once } from 'node:events';

/** What `saga doctor --directives ENDPOINT --json` prints. */
export interface ConnectorReport {
  schema: 'saga.doctor.connector/1';
  endpoint: string;
  /** `policy`: it decides what the engine evicts; `leases`: it keeps what it is told to; `none`: the engine runs as without it. Null: no answer. */
  strength: string | null;
  reason: string | null;
  vllmVersion: string | null;
  connectorVersion: string | null;
  ok: boolean;
  problem: string | null;
}

const patienceMs = 5000;

/**
 * Asks a worker for its state.
 *
 * @returns the exit code: 0 for the strength `policy` or `leases`, 1 otherwise
 */
export async function doctorConnector(
  endpoint: string,
  options: { json?: boolean; key?: string | undefined },
): Promise<number> {
  const { DirectiveChannel } = await import('../vllm/directive-channel.js');
  const { checkEndpoint } = await import('../vllm/options.js');
  const { noDirectiveMetrics } = await import('../vllm/metrics.js');
  const { SagaError } = await import('../errors.js');
  let checked: string;
  try {
    checked = checkEndpoint('--directives', endpoint);
  } catch (error) {
    if (!(error instanceof SagaError)) throw error;
    process.stderr.write(`saga doctor: ${error.message}\n`);
    return 2;
  }
  const channel = new DirectiveChannel({
    endpoint: checked,
    key: options.key,
    metrics: noDirectiveMetrics(),
    wakeMs: patienceMs,
    wake: () => Promise.resolve(),
  });
  const answer = await new Promise<Readonly<Record<string, unknown>> | undefined>((resolve) => {
    const timer = setTimeout(() => {
      resolve(undefined);
    }, patienceMs);
    channel.send('saga.status', {}, patienceMs / 1000, (outcome, _, fields) => {
      clearTimeout(timer);
      resolve(outcome.status === 'applied' ? fields : undefined);
    });
  });
  channel.close();
  const text = (name: string): string | null => {
    const value = answer?.[name];
    return typeof value === 'string' && value !== '' ? value : null;
  };
  const strength = text('strength');
  const reason = text('reason');
  const ok = strength === 'policy' || strength === 'leases';
  const report: ConnectorReport = {
    schema: 'saga.doctor.connector/1',
    endpoint: checked,
    strength,
    reason,
    vllmVersion: text('vllm_version'),
    connectorVersion: text('connector_version'),
    ok,
    problem: ok
      ? null
      : answer === undefined
        ? `no answer from ${checked} within ${patienceMs / 1000} seconds: no connector listens there, or the key is another one`
        : `the connector does nothing${reason === null ? '' : `: ${reason}`}`,
  };
  if (options.json === true) {
    process.stdout.write(`${JSON.stringify(report, null, 2)}\n`);
  } else {
    const rows = [
      ['endpoint', report.endpoint],
      ['strength', report.strength ?? 'unknown'],
      ['reason', report.reason ?? '-'],
      ['vLLM', report.vllmVersion ?? 'unknown'],
      ['connector', report.connectorVersion ?? 'unknown'],
    ] as const;
    for (const [name, value] of rows) process.stdout.write(`${name.padEnd(16)}${value}\n`);
  }
  if (report.problem !== null) process.stderr.write(`saga doctor: ${report.problem}.\n`);
  if (process.stdout.writableNeedDrain) await once(process.stdout, 'drain');
  return ok ? 0 : 1;
}
