// An agent of LangGraph.js against the gateway: model, tool, model.
import { HumanMessage } from '@langchain/core/messages';
import { tool } from '@langchain/core/tools';
import { MessagesAnnotation, StateGraph } from '@langchain/langgraph';
import { ToolNode, toolsCondition } from '@langchain/langgraph/prebuilt';
import { ChatOpenAI } from '@langchain/openai';

const getWeather = tool(
  (input) => {
    const { city } = /** @type {{ city: string }} */ (input);
    console.log(`tool: get_weather of ${city}`);
    return `18 degrees and cloudy in ${city}`;
  },
  {
    name: 'get_weather',
    description: 'The weather in a city.',
    schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
);

const model = new ChatOpenAI({
  model: process.env.SAGA_MODEL ?? 'demo',
  apiKey: process.env.SAGA_API_KEY ?? 'none',
  configuration: { baseURL: `${process.env.SAGA_URL ?? 'http://127.0.0.1:8080'}/v1` },
}).bindTools([getWeather]);

const agent = new StateGraph(MessagesAnnotation)
  .addNode('model', async ({ messages }) => ({ messages: [await model.invoke(messages)] }))
  .addNode('tools', new ToolNode([getWeather]))
  .addEdge('__start__', 'model')
  .addConditionalEdges('model', toolsCondition)
  .addEdge('tools', 'model')
  .compile();

const { messages } = await agent.invoke({ messages: [new HumanMessage('How is the weather in Paris?')] });
console.log(`steps: ${messages.map((message) => message.getType()).join(', ')}`);
console.log(`answer: ${messages.at(-1)?.text}`);
