import { defineConfig } from 'vitest/config';

// Two projects: `npm test` runs the first; the second packs and installs tarballs (`npm run test:packaging`).
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
          exclude: ['test/packaging/**'],
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
    ],
  },
});
