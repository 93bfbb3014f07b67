// Run inside an empty project that has installed the tarball: loads the package as CommonJS and uses it. smoke.mjs does the
// same with what it has imported.
'use strict';

const assert = require('node:assert/strict');

module.exports = function use(saga) {
  assert.ok(Object.keys(saga).length > 0);
  console.log('ok');
};

if (require.main === module) module.exports(require('saga-scheduler'));
