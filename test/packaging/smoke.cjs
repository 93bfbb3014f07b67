// Run inside an empty project that has installed the tarball: loads the package as CommonJS and uses it. smoke.mjs does the
// same with what it has imported.
'use strict';

const assert = require('node:assert/strict');

module.exports = function use(saga) {
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
  console.log('ok');
};

if (require.main === module) module.exports(require('saga-scheduler'));
