// The official Anthropic SDK against a gateway: node anthropic.mjs BASE_URL KEY. Prints one JSON object of what it got.
import Anthropic from '@anthropic-ai/sdk';

const [, , baseURL, apiKey] = process.argv;
const client = new Anthropic({ baseURL, apiKey, maxRetries: 0, timeout: 10_000 });
const model = 'test-model';
const ask = (content) => ({ model, max_tokens: 100, messages: [{ role: 'user', content }] });
const got = {};

{
  const { data, response } = await client.messages.create(ask('script: say Hello world')).withResponse();
  got.whole = {
    text: data.content.map((block) => block.text ?? '').join(''),
    stop: data.stop_reason,
    usage: { input: data.usage.input_tokens, output: data.usage.output_tokens },
    route: response.headers.get('x-claw-route'),
  };
}
{
  const stream = client.messages.stream(ask('script: say caf\u00e9 \u{1f600} done'));
  const seen = [];
  stream.on('text', (piece) => seen.push(piece));
  const final = await stream.finalMessage();
  got.streamed = { text: seen.join(''), pieces: seen.length, stop: final.stop_reason, output: final.usage.output_tokens };
}
{
  const tools = [{ name: 'add', description: 'Adds.', input_schema: { type: 'object', properties: { a: { type: 'number' } } } }];
  const final = await client.messages.stream({ ...ask('script: tool add {"a": 1}'), tools }).finalMessage();
  const call = final.content.find((block) => block.type === 'tool_use');
  got.tools = { name: call?.name, input: call?.input, stop: final.stop_reason };
}

const failed = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, type: error.error?.error?.type ?? null };
  }
};
got.errors = {
  key: await failed(() => new Anthropic({ baseURL, apiKey: 'wrong', maxRetries: 0 }).messages.create(ask('x'))),
  model: await failed(() => client.messages.create({ ...ask('x'), model: 'none' })),
  limit: await failed(() => client.messages.create(ask('script: status 429 retry-after 7'))),
  middle: await failed(() => client.messages.stream(ask('script: say one; error broken')).finalMessage()),
};
console.log(JSON.stringify(got));
