/** So many servers that are healthy and hold nothing, for placements among many workers; every call gets the same answer. Argument: their number. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { answerUsage } from './processes.js';

const metrics = [
  'vllm:cache_config_info{block_size="16",num_gpu_blocks="16384",prefix_caching_hash_algo="sha256_cbor",engine="0"} 1.0',
  'vllm:num_requests_running{engine="0",model_name="m"} 0.0',
  'vllm:num_requests_waiting{engine="0",model_name="m"} 0.0',
  'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.0',
  '',
].join('\n');
const completed = '{"id":"a","choices":[{"index":0,"text":"a","finish_reason":"stop"}]}';
const answers: Record<string, string> = {
  '/health': '',
  '/version': '{"version":"0.33.0"}',
  '/metrics': metrics,
  '/v1/models': '{"object":"list","data":[{"id":"m","object":"model"}]}',
};

const urls = await Promise.all(
  Array.from(
    { length: Number(process.argv[2] ?? 128) },
    () =>
      new Promise<string>((resolve) => {
        const server = createServer((request, response) => {
          if (request.method === 'POST') {
            request.resume().on('end', () => {
              response.writeHead(200, { 'content-type': 'application/json', 'content-length': completed.length });
              response.end(completed);
            });
            return;
          }
          const answer = answers[(request.url ?? '').split('?')[0] ?? ''];
          response.writeHead(answer === undefined ? 405 : 200, {
            'content-type': answer?.startsWith('{') === true ? 'application/json' : 'text/plain',
          });
          response.end(answer ?? '');
        });
        server.listen(0, '127.0.0.1', () => {
          resolve(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
        });
      }),
  ),
);
process.stdout.write(`${JSON.stringify({ urls })}\n`);
answerUsage();
