// Vercel AI SDK against the gateway.
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, jsonSchema, stepCountIs, streamText, tool } from 'ai';

const saga = createOpenAICompatible({
  name: 'saga',
  baseURL: `${process.env.SAGA_URL ?? 'http://127.0.0.1:8080'}/v1`,
  ...(process.env.SAGA_API_KEY === undefined ? {} : { apiKey: process.env.SAGA_API_KEY }),
});
const model = saga(process.env.SAGA_MODEL ?? 'demo');

const { textStream } = streamText({ model, prompt: 'Count to three.' });
let text = '';
for await (const part of textStream) text += part;
console.log(`streamed: ${text}`);

const { text: answer, steps } = await generateText({
  model,
  prompt: 'How is the weather in Paris?',
  tools: {
    get_weather: tool({
      description: 'The weather in a city.',
      inputSchema: jsonSchema(
        /** @type {const} */ ({ type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }),
      ),
      execute: (input) => {
        const { city } = /** @type {{ city: string }} */ (input);
        console.log(`tool: get_weather of ${city}`);
        return `18 degrees and cloudy in ${city}`;
      },
    }),
  },
  stopWhen: stepCountIs(4),
});
console.log(`answer after ${steps.length} calls: ${answer}`);
