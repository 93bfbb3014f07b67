/**
 * The gateway as a library: OpenAI-compatible HTTP in front of vLLM workers, scheduled by SAGA.
 *
 * @packageDocumentation
 */
export { Gateway } from './gateway.js';
export type { GatewayConfig, ModelConfig, TenantConfig } from './config.js';
export { GatewayError, gatewayErrors, type GatewayErrorCode } from './errors.js';
