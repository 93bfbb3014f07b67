/**
 * A stand-in for vLLM where there is no GPU: for tests, demonstrations and capacity tests.
 *
 * @packageDocumentation
 */
export { EmulatedWorker } from './worker.js';
export { type EmulatedWorkerOptions } from './options.js';
export { type Answer, type Script, type ScriptRequest } from './answer.js';
export { type ChatMessage, type ToolCall, encodeChat } from './chat-template.js';
export { decode, encode, markers, vocabularySize } from './tokenizer.js';
