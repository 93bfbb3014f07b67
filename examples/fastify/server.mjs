// The gateway within a Fastify server, beside routes of its own: `node examples/fastify/server.mjs`.
//
// WORKERS: URLs of the model's servers, with commas between them. PORT: where this one listens; 0: any free port.
import fastify from 'fastify';
import { Gateway } from 'saga-scheduler/gateway';

const gateway = await Gateway.start({
  models: [
    {
      name: process.env.SAGA_MODEL ?? 'demo',
      servers: (process.env.WORKERS ?? 'http://127.0.0.1:8000').split(',').map((url) => ({ url })),
    },
  ],
});

const app = fastify();
app.get('/hello', () => ({ hello: 'from Fastify' }));
await app.register((scope, _options, done) => {
  // The gateway reads bodies itself: within its own limits, and without parsing them whole.
  scope.removeAllContentTypeParsers();
  scope.addContentTypeParser('*', (_request, _payload, ready) => {
    ready(null);
  });
  for (const path of ['/v1/*', '/saga/*', '/healthz', '/readyz', '/metrics'])
    scope.all(path, (request, reply) => {
      reply.hijack();
      gateway.handler(request.raw, reply.raw);
    });
  done();
});
console.log(`listening at ${await app.listen({ host: '127.0.0.1', port: Number(process.env.PORT ?? 8080) })}`);

for (const signal of ['SIGINT', 'SIGTERM'])
  process.once(signal, async () => {
    await app.close();
    await gateway.close({ graceSeconds: 1 });
  });
