// Run inside an empty project that has installed the tarball: loads the package and its simulations as CommonJS and uses them.
// smoke.mjs does the same with what it has imported.
'use strict';

const assert = require('node:assert/strict');

module.exports = async function use(saga, simulation) {
  const scheduler = new saga.Scheduler({ maxBlocks: 1024, clock: () => 0 });
  scheduler.addWorker({ blocks: 1024 });
  const holder = scheduler.addWorker({ blocks: 1024 });
  const prompt = Array.from({ length: 100 }, (_, i) => i);
  holder.stored(scheduler.hash(prompt));
  const call = scheduler.openWorkflow({ tenant: 'smoke' }).submit(prompt);
  scheduler.decide();
  assert.equal(call.receipt.worker, holder);
  assert.equal(call.receipt.reason, 'longest-match');
  assert.equal(call.receipt.matchedBlocks.gpu, 6);
  assert.throws(() => scheduler.addWorker({ blocks: 0 }), saga.SagaArgumentError);
  const { worker, reason } = scheduler.openWorkflow().submit(prompt).place();
  assert.deepEqual([worker, reason], [holder, 'longest-match']);
  scheduler.close();

  const workload = simulation.generateAgentSessions({ sessions: 4 }).arrange();
  const report = await simulation.simulateCache(workload, { policies: ['lru'], cacheShares: [10] });
  assert.equal(report.results.length, 1);
  assert.ok(report.results[0].beladyRatio >= 1);
  assert.match(simulation.chartOf(report), /^<svg /);
  await assert.rejects(simulation.readTrace('no-such-file'), saga.SagaError);
  console.log('ok');
};

if (require.main === module) module.exports(require('saga-scheduler'), require('saga-scheduler/simulate'));
