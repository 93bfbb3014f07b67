// The `openai` package against the gateway: only the base URL differs from OpenAI's.
import OpenAI from 'openai';

const client = new OpenAI({
  baseURL: `${process.env.SAGA_URL ?? 'http://127.0.0.1:8080'}/v1`,
  apiKey: process.env.SAGA_API_KEY ?? 'none',
});
const model = process.env.SAGA_MODEL ?? 'demo';

// A chat, streamed.
const stream = await client.chat.completions.create({
  model,
  messages: [{ role: 'user', content: 'Count to three.' }],
  stream: true,
});
let text = '';
for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? '';
console.log(`streamed: ${text}`);

// A tool's round trip: the model asks for it, the client runs it, the model answers.
/** @type {OpenAI.ChatCompletionTool[]} */
const tools = [
  {
    type: 'function',
    function: {
      name: 'get_weather',
      description: 'The weather in a city.',
      parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
    },
  },
];
/** @type {OpenAI.ChatCompletionMessageParam[]} */
const messages = [{ role: 'user', content: 'How is the weather in Paris?' }];
for (;;) {
  const completion = await client.chat.completions.create({ model, messages, tools });
  const message = completion.choices[0]?.message;
  if (message === undefined) throw new Error('no answer');
  messages.push(message);
  if (!message.tool_calls?.length) {
    console.log(`answer: ${message.content}`);
    break;
  }
  for (const call of message.tool_calls) {
    if (call.type !== 'function') continue;
    const { city } = JSON.parse(call.function.arguments);
    console.log(`tool: ${call.function.name} of ${city}`);
    messages.push({ role: 'tool', tool_call_id: call.id, content: `18 degrees and cloudy in ${city}` });
  }
}
