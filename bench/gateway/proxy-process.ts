/**
 * The yardstick: a proxy that does nothing but pass requests on, by undici's dispatch as the gateway does. No scheduling, no reading of answers.
 *
 * Arguments: pairs `model=url`. The model stands at the beginning of the path.
 */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Agent, type Dispatcher } from 'undici';
import { answerUsage } from './processes.js';

const upstreams = new Map(process.argv.slice(2).map((pair) => pair.split('=') as [string, string]));
const agent = new Agent({ pipelining: 1, connections: null });

const server = createServer((request, response) => {
  const [, model = '', ...rest] = (request.url ?? '').split('/');
  const chunks: Buffer[] = [];
  request.on('data', (chunk: Buffer) => chunks.push(chunk));
  request.on('end', () => {
    let controller: Dispatcher.DispatchController | undefined;
    response.on('drain', () => controller?.resume());
    response.on('close', () => {
      if (!response.writableFinished) controller?.abort(new Error('gone'));
    });
    agent.dispatch(
      {
        origin: upstreams.get(model) ?? '',
        path: `/${rest.join('/')}`,
        method: request.method as Dispatcher.HttpMethod,
        headers: { 'content-type': request.headers['content-type'] ?? 'application/json' },
        body: Buffer.concat(chunks),
      },
      {
        onRequestStart: (started) => {
          controller = started;
        },
        onResponseStart: (_, status, headers) => {
          delete headers['connection'];
          delete headers['keep-alive'];
          delete headers['transfer-encoding'];
          response.writeHead(status, headers as Record<string, string>);
        },
        onResponseData: (running, chunk) => {
          if (!response.write(chunk)) running.pause();
        },
        onResponseEnd: () => {
          response.end();
        },
        onResponseError: () => {
          response.destroy();
        },
      },
    );
  });
});
server.keepAliveTimeout = 75_000;
server.listen(0, '127.0.0.1', () => {
  process.stdout.write(`${JSON.stringify({ url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` })}\n`);
  answerUsage();
});
