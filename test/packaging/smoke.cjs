// Run inside an empty project that has installed the tarball: loads the package and its other entry points as CommonJS and uses them.
// smoke.mjs does the same with what it has imported.
'use strict';

const assert = require('node:assert/strict');

module.exports = async function use(saga, simulation, graph) {
  const scheduler = new saga.Scheduler({ policy: 'affinity', maxBlocks: 1024, clock: () => 0 });
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

  const loop = graph.AgentGraph.define({ steps: { act: { tool: 'web-api', next: { act: 0.75 } } } });
  assert.equal(loop.expectedCalls(), 4);
  const schema = require('saga-scheduler/schema/agent-graph.schema.json');
  assert.deepEqual(schema.$defs.step.properties.tool.enum, graph.toolClasses);
  console.log('ok');
};

if (require.main === module) {
  module.exports(require('saga-scheduler'), require('saga-scheduler/simulate'), require('saga-scheduler/graph'));
}
