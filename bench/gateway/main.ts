/**
 * `npm run bench:gateway [-- overhead|memory|select|conversation] [--quick]`: what the gateway adds to a request.
 *
 * Direct access, a bare proxy and the gateway take turns in front of the same emulated worker, each in a process of its own; so does the client, which is this
 * process. Probes are sent one after another; the streams beside them come from a second worker at 50 chunks a second.
 */
import { rmSync } from 'node:fs';
import { cpus } from 'node:os';
import { BlockHasher, Lineage, Scheduler } from '../../dist/esm/index.js';
import { Child, type Usage } from './processes.js';
import { median, post, quantile } from './client.js';
import { tokenizerFolder, words } from './tokenizer.js';

const args = process.argv.slice(2);
const quick = args.includes('--quick');
const wanted = args.filter((arg) => !arg.startsWith('--'));
const has = (name: string): boolean => wanted.length === 0 || wanted.includes(name);

interface Endpoint {
  url: string;
  events?: string;
  replay?: string;
}
interface Path {
  name: string;
  url: (model: string) => string;
  process: Child<unknown> | undefined;
}

const steps = { base: 0.02, perCall: 1e-9, perContextToken: 1e-12, perPrefillToken: 1e-9, perPrefillPair: 1e-15 };
const worker = (options: object): Promise<Child<Endpoint>> =>
  Child.start<Endpoint>('worker-process.js', [
    JSON.stringify({ eventsPort: 0, replayPort: 0, blocks: 40_000, maxSequences: 1024, ...options }),
  ]);
const server = ({ ready }: Child<Endpoint>): object => ({ url: ready.url, events: ready.events, replay: ready.replay });

/** Ids that no request before had. */
let drawn = 1;
function ids(count: number): number[] {
  return Array.from({ length: count }, () => {
    drawn = (Math.imul(drawn, 1_103_515_245) + 12_345) & 0x7fffffff;
    return drawn % 30_000;
  });
}

function completion(model: string, prompt: readonly number[], maxTokens: number): string {
  return JSON.stringify({ model, prompt, max_tokens: maxTokens, stream: true, ignore_eos: true });
}

function row(...cells: (string | number)[]): void {
  console.log(cells.map((cell) => (typeof cell === 'number' ? cell.toFixed(3) : cell).padStart(16)).join(''));
}

async function overhead(): Promise<void> {
  // A step of nothing for probes; 20 ms for streams, which makes 50 chunks a second. There is room for what all workflows may come to hold, of which
  // none goes on: no call waits for another.
  const probes = await worker({ model: 'probes', timeScale: null, blocks: 1_000_000 });
  const streams = await worker({ model: 'streams', timeScale: 1, stepSeconds: steps, blocks: 1_000_000 });
  const proxy = await Child.start<{ url: string }>('proxy-process.js', [
    `probes=${probes.ready.url}`,
    `streams=${streams.ready.url}`,
  ]);
  const gateway = await Child.start<{ url: string }>('gateway-process.js', [
    JSON.stringify({
      port: 0,
      models: [
        { name: 'probes', servers: [server(probes)] },
        { name: 'streams', servers: [server(streams)], stepSeconds: steps },
      ],
    }),
  ]);
  const direct = { probes, streams } as Record<string, Child<Endpoint>>;
  const paths: Path[] = [
    { name: 'direct', url: (model) => `${direct[model]?.ready.url ?? ''}/v1/completions`, process: undefined },
    { name: 'proxy', url: (model) => `${proxy.ready.url}/${model}/v1/completions`, process: proxy },
    { name: 'gateway', url: () => `${gateway.ready.url}/v1/completions`, process: gateway },
  ];
  const used = async ({ process }: Path): Promise<Usage> =>
    (await process?.usage()) ?? { cpuMicroseconds: 0, residentBytes: 0 };

  // A gateway runs for weeks: compilers have done their work on all sides before anything is measured.
  for (let i = 0; i < (quick ? 300 : 10_000); ++i)
    for (const path of paths) await post(path.url('probes'), completion('probes', ids(1000), 1));

  for (const open of [0, 200]) {
    const rounds = quick ? 3 : 12;
    const perRound = quick ? 50 : 150;
    const times = paths.map((): number[] => []);
    const cpuOfStreams = paths.map((): number[] => []);
    for (let round = 0; round <= rounds; ++round) {
      for (let k = 0; k < paths.length; ++k) {
        // Another one begins each round; the first round does not count.
        const at = (round + k) % paths.length;
        const path = paths[at] as Path;
        const before = await used(path);
        const running = Array.from({ length: open }, () =>
          post(path.url('streams'), completion('streams', ids(64), 128)),
        );
        for (let i = 0; i < perRound; ++i) {
          const answer = await post(path.url('probes'), completion('probes', ids(1000), 1));
          if (answer.status !== 200) throw new Error(`${path.name} answered with status ${answer.status}`);
          if (round > 0) (times[at] as number[]).push(answer.firstByte);
        }
        for (const answer of await Promise.all(running))
          if (answer.status !== 200) throw new Error(`a stream ended with status ${answer.status}`);
        const after = await used(path);
        if (open > 0 && round > 0)
          (cpuOfStreams[at] as number[]).push((after.cpuMicroseconds - before.cpuMicroseconds) / 1000 / open);
      }
    }
    report(`first byte of a prompt of 1,000 ids, ${open} other streams open (ms)`, paths, times);
    if (open > 0) {
      console.log(`\nCPU for each of ${open} streams of 128 chunks at 50 a second, with the probes beside them (ms)`);
      const [, bare = Number.NaN, own = Number.NaN] = cpuOfStreams.map(median);
      row('proxy', bare);
      row('gateway', own);
      row('ratio', own / bare);
    }
  }

  // Chunks as fast as they come.
  const cpu = paths.map((): number[] => []);
  const count = quick ? 50 : 200;
  for (let round = 0; round <= (quick ? 2 : 8); ++round) {
    for (let k = 1; k < paths.length; ++k) {
      const at = 1 + ((round + k) % 2);
      const path = paths[at] as Path;
      const before = await used(path);
      for (let i = 0; i < count; ++i) await post(path.url('probes'), completion('probes', ids(64), 128));
      const after = await used(path);
      if (round > 0) (cpu[at] as number[]).push((after.cpuMicroseconds - before.cpuMicroseconds) / 1000 / count);
    }
  }
  console.log('\nCPU for a stream of 128 chunks sent back to back (ms)');
  const [, bare = Number.NaN, own = Number.NaN] = cpu.map(median);
  row('proxy', bare);
  row('gateway', own);
  row('ratio', own / bare);
  for (const child of [probes, streams, proxy, gateway]) child.stop();
}

function report(title: string, paths: readonly Path[], times: readonly number[][]): void {
  console.log(`\n${title}`);
  row('', 'p50', 'p99', 'added p50', 'added p99');
  const [direct = []] = times;
  const added: number[][] = [];
  times.forEach((values, at) => {
    const [p50, p99] = [0.5, 0.99].map((share) => quantile(values, share)) as [number, number];
    const own = [p50 - quantile(direct, 0.5), p99 - quantile(direct, 0.99)];
    added.push(own);
    row(paths[at]?.name ?? '', p50, p99, ...(at === 0 ? ['', ''] : own));
  });
  const ratio = [0, 1].map((k) => (added[2]?.[k] ?? Number.NaN) / (added[1]?.[k] ?? Number.NaN));
  row('ratio', '', '', ...ratio);
}

async function memory(): Promise<void> {
  const one = await worker({ model: 'm', timeScale: null });
  const gateway = await Child.start<{ url: string }>('gateway-process.js', [
    JSON.stringify({ port: 0, models: [{ name: 'm', servers: [server(one)] }] }),
  ]);
  const url = `${gateway.ready.url}/v1/completions`;
  const marks = quick ? [2000, 4000] : [20_000, 100_000];
  const resident: number[] = [];
  let sent = 0;
  for (const mark of marks) {
    const lanes = Array.from({ length: 32 }, async () => {
      while (sent < mark) {
        sent += 1;
        const answer = await post(url, completion('m', ids(1000), 8));
        if (answer.status !== 200) throw new Error(`status ${answer.status}`);
      }
    });
    await Promise.all(lanes);
    resident.push((await gateway.usage(true)).residentBytes / 2 ** 20);
  }
  console.log('\nresident memory of the gateway (MiB)');
  marks.forEach((mark, i) => {
    row(`${mark} requests`, resident[i] as number);
  });
  row('ratio', (resident[1] as number) / (resident[0] as number));
  one.stop();
  gateway.stop();
}

async function select(): Promise<void> {
  const servers = await Child.start<{ urls: string[] }>('many-servers-process.js', ['128']);
  const gateway = await Child.start<{ url: string }>('gateway-process.js', [
    JSON.stringify({
      port: 0,
      probe: false,
      models: [{ name: 'm', servers: servers.ready.urls.map((url) => ({ url })) }],
    }),
  ]);
  const times: number[] = [];
  const bare: number[] = [];
  const cpu: number[] = [];
  const count = quick ? 200 : 2000;
  const warming = 50;
  const counted = 25;
  let bodies: Buffer[] = [];
  let before = await gateway.usage();
  for (let i = 0; i < count + warming; ++i) {
    if (i % counted === 0) {
      const after = await gateway.usage();
      if (i > warming) cpu.push((after.cpuMicroseconds - before.cpuMicroseconds) / 1000 / counted);
      // Made beforehand, as bytes: to make them of a text takes the client 0.3 ms.
      bodies = Array.from({ length: counted }, () =>
        Buffer.from(JSON.stringify({ model: 'm', token_ids: ids(24_576) })),
      );
      // What the way there and back takes: a server that only reads the body.
      for (const body of bodies.slice(0, 5)) bare.push((await post(servers.ready.urls[0] as string, body)).end);
      before = await gateway.usage();
    }
    const body = bodies[i % counted] as Buffer;
    const answer = await post(`${gateway.ready.url}/saga/select_and_reserve`, body, true);
    if (answer.status !== 200) throw new Error(`select answered ${answer.status}: ${answer.body}`);
    if (i >= warming) times.push(answer.end);
    const { reservation } = JSON.parse(answer.body) as { reservation: string };
    await post(`${gateway.ready.url}/saga/release`, JSON.stringify({ reservation, output_tokens: 1 }));
  }
  console.log('\n/saga/select_and_reserve, 24,576 token ids, 128 workers (ms)');
  row('', 'least', 'p50', 'p99');
  row('gateway', ...[0, 0.5, 0.99].map((share) => quantile(times, share)));
  row('bare server', ...[0, 0.5, 0.99].map((share) => quantile(bare, share)));
  console.log('\nCPU of the gateway for a selection and its release, with all that it does besides (ms)');
  row('least', quantile(cpu, 0));
  row('p50', quantile(cpu, 0.5));
  servers.stop();
  gateway.stop();
}

/** Conversations of 100,000 tokens in 50 turns, each of which sends everything before it again. */
async function conversation(): Promise<void> {
  const turns = 50;
  const perTurn = 2000;
  const folder = tokenizerFolder();
  const servers = await Child.start<{ urls: string[] }>('many-servers-process.js', ['1']);
  const gateway = await Child.start<{ url: string }>('gateway-process.js', [
    JSON.stringify({
      port: 0,
      probe: false,
      models: [{ name: 'm', tokenizer: folder, servers: servers.ready.urls.map((url) => ({ url })) }],
    }),
  ]);
  const { url } = gateway.ready;
  const counted = async (): Promise<{ prompt: number; tokenized: number; hashed: number }> => {
    const text = await (await fetch(`${url}/metrics`)).text();
    const [prompt = 0, tokenized = 0, hashed = 0] = ['tokens', 'tokens_tokenized', 'blocks_hashed'].map((name) =>
      Number(new RegExp(`^saga:prompt_${name}_total\\{.*\\} (\\d+)$`, 'm').exec(text)?.[1]),
    );
    return { prompt, tokenized, hashed };
  };
  const draw = (): number => ids(1)[0] as number;
  const kinds = {
    chat: () => {
      const messages: object[] = [];
      return () => {
        messages.push({ role: 'user', content: words(perTurn / 2, draw) });
        const body = JSON.stringify({ model: 'm', messages, max_tokens: 1 });
        messages.push({ role: 'assistant', content: words(perTurn / 2, draw) });
        return body;
      };
    },
    ids: () => {
      const prompt: number[] = [];
      return () => {
        prompt.push(...ids(perTurn));
        return JSON.stringify({ model: 'm', prompt, max_tokens: 1 });
      };
    },
  };
  for (const [kind, begin] of Object.entries(kinds)) {
    const path = kind === 'chat' ? '/v1/chat/completions' : '/v1/completions';
    const rounds = quick ? 3 : 10;
    const cpu = Array.from({ length: turns }, (): number[] => []);
    const bytes: number[] = [];
    const counts: Awaited<ReturnType<typeof counted>>[] = [];
    for (let round = 0; round < rounds; ++round) {
      const next = begin();
      for (let turn = 0; turn < turns; ++turn) {
        const body = next();
        // Counts are the same each time; reading them costs CPU time.
        const tell = round === 0;
        const had = tell ? await counted() : undefined;
        const before = await gateway.usage();
        const answer = await post(url + path, body, true);
        const after = await gateway.usage();
        if (answer.status !== 200) throw new Error(`status ${answer.status}: ${answer.body}`);
        if (round > 0) (cpu[turn] as number[]).push((after.cpuMicroseconds - before.cpuMicroseconds) / 1000);
        bytes[turn] = body.length / 2 ** 20;
        const now = tell ? await counted() : undefined;
        if (now !== undefined && had !== undefined)
          counts.push({
            prompt: now.prompt - had.prompt,
            tokenized: now.tokenized - had.tokenized,
            hashed: now.hashed - had.hashed,
          });
      }
    }
    console.log(`\na conversation of ${turns} turns by ${kind}: in each turn`);
    row('turn', 'body MiB', 'prompt tokens', 'tokenized', 'blocks hashed', 'CPU ms');
    const costs = cpu.map(median);
    for (const turn of [0, 1, 2, 9, 24, 49]) {
      const { prompt = NaN, tokenized = NaN, hashed = NaN } = counts[turn] ?? {};
      row(`${turn + 1}`, bytes[turn] as number, `${prompt}`, `${tokenized}`, `${hashed}`, costs[turn] as number);
    }
    // The first two turns make tokens of everything.
    const { slope, start } = line(bytes.slice(2), costs.slice(2));
    row('CPU ms a MiB', slope, 'and a turn', start);
  }
  servers.stop();
  gateway.stop();
  rmSync(folder, { recursive: true });

  // What is done for each call with a chain that is known, by its length.
  console.log('\na call whose prompt is known but for its last 125 blocks (us)');
  row('blocks', 'lines of index', 'identify', 'submit', 'place', 'finish');
  for (const blocks of [125, 500, 1000, 2000, 4000, 6250]) {
    const lineage = new Lineage();
    const scheduler = new Scheduler({ policy: 'saga' });
    const worker = scheduler.addWorker({ blocks: 100_000 });
    const workflow = scheduler.openWorkflow();
    const chain = new BlockHasher().update(Uint32Array.from(ids(16 * blocks)));
    worker.stored(chain.subarray(0, blocks - 125));
    const times: number[][] = [[], [], [], []];
    for (let i = 0; i < (quick ? 200 : 2000); ++i) {
      const at = [performance.now()];
      const { head } = lineage.identify(chain);
      at.push(performance.now());
      const call = workflow.submit({ chain, promptTokens: 16 * blocks });
      at.push(performance.now());
      call.place();
      at.push(performance.now());
      call.finish({ outputTokens: 10 });
      at.push(performance.now());
      lineage.ended(head);
      times.forEach((own, k) => own.push(1000 * ((at[k + 1] as number) - (at[k] as number))));
    }
    row(`${blocks}`, `${Math.ceil(blocks / 16)}`, ...times.map(median));
    scheduler.close();
    lineage.close();
  }
}

/** Least squares. */
function line(x: readonly number[], y: readonly number[]): { slope: number; start: number } {
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [middle, height] = [mean(x), mean(y)];
  const slope =
    x.reduce((sum, value, i) => sum + (value - middle) * ((y[i] as number) - height), 0) /
    x.reduce((sum, value) => sum + (value - middle) ** 2, 0);
  return { slope, start: height - slope * middle };
}

console.log(`${cpus()[0]?.model ?? 'unknown CPU'}, ${cpus().length} cores, Node ${process.version}`);
if (has('overhead')) await overhead();
if (has('memory')) await memory();
if (has('select')) await select();
if (has('conversation')) await conversation();
process.exit();
