/**
 * The chat template of the emulated model: messages become tokens one after the other, so a conversation that grows keeps its
 * prefix, and an answer that comes back as a message gives the very tokens that were generated.
 *
 * ```text
 * <begin> <system> text <tools> JSON <end> <user> text <end> <assistant> text <tool_call> name <tool_arguments> JSON
 * <tool_call_end> <end> <tool> text <end> <assistant>
 * ```
 *
 * Tools come with the first system message, or with one of their own. The last marker asks for an answer.
 */
import { encodeInto, markers } from './tokenizer.js';

export interface ToolCall {
  name: string;
  /** JSON, exactly as the model wrote it. */
  arguments: string;
}

export interface ChatMessage {
  role: 'system' | 'user' | 'assistant' | 'tool';
  content: string;
  toolCalls: ToolCall[];
}

/** Tokens of what an assistant says, as it is generated and as it comes back in a prompt. */
export function encodeAnswer(content: string, toolCalls: readonly ToolCall[], out: number[]): void {
  encodeInto(content, out);
  for (const call of toolCalls) {
    out.push(markers.toolCall);
    encodeInto(call.name, out);
    out.push(markers.toolArguments);
    encodeInto(call.arguments, out);
    out.push(markers.toolCallEnd);
  }
}

/** Tokens of a conversation. */
export function encodeChat(
  messages: readonly ChatMessage[],
  tools: readonly unknown[],
  addGenerationPrompt: boolean,
): number[] {
  const out: number[] = [markers.begin];
  const toolText = tools.length === 0 ? undefined : JSON.stringify(tools);
  let first = 0;
  if (toolText !== undefined) {
    out.push(markers.system);
    if (messages[0]?.role === 'system') encodeInto((messages[first++] as ChatMessage).content, out);
    out.push(markers.tools);
    encodeInto(toolText, out);
    out.push(markers.end);
  }
  for (const message of messages.slice(first)) {
    out.push(markers[message.role]);
    encodeAnswer(message.content, message.toolCalls, out);
    out.push(markers.end);
  }
  if (addGenerationPrompt) out.push(markers.assistant);
  return out;
}
