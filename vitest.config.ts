import { defineConfig } from 'vitest/config';

// Three projects: `npm test` runs the first; the second packs and installs tarballs (`npm run test:packaging`), the third starts
// real vLLM servers (`npm run test:vllm`).
export default defineConfig({
  test: {
    // The loader is CommonJS that runs as it is in src/ and in dist/.
    server: { deps: { external: [/\.cjs$/] } },
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/packaging/**', 'test/vllm-real/**'],
          testTimeout: 60_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'packaging',
          include: ['test/packaging/**/*.test.ts'],
          fileParallelism: false,
          testTimeout: 300_000,
          hookTimeout: 600_000,
        },
      },
      {
        extends: true,
        test: {
          name: 'vllm',
          include: ['test/vllm-real/**/*.test.ts'],
          globalSetup: 'test/vllm-real/setup.ts',
          // They share the servers.
          fileParallelism: false,
          testTimeout: 600_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
});
