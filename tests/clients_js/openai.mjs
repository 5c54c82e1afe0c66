// The official OpenAI SDK against a gateway: node openai.mjs BASE_URL KEY. Prints one JSON object of what it got.
import OpenAI from 'openai';

const [, , baseURL, apiKey] = process.argv;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 10_000 });
const model = 'test-model';
const user = (content) => [{ role: 'user', content }];
const got = {};

// A whole answer, and its headers.
{
  const { data, response } = await client.chat.completions
    .create({ model, messages: user('script: say Hello world') })
    .withResponse();
  got.whole = {
    text: data.choices[0].message.content,
    finish: data.choices[0].finish_reason,
    usage: data.usage,
    route: response.headers.get('x-claw-route'),
    id: response.headers.get('x-request-id'),
  };
}

// A stream, with and without its usage.
for (const [name, options] of [
  ['streamed', { stream_options: { include_usage: true } }],
  ['streamed_plain', {}],
]) {
  const stream = await client.chat.completions.create({
    model,
    messages: user('script: reasoning so; say caf\u00e9 \u{1f600} done'),
    stream: true,
    ...options,
  });
  const seen = { text: '', reasoning: '', finish: null, usage: null, empty: 0 };
  for await (const chunk of stream) {
    const choice = chunk.choices[0];
    if (choice === undefined) seen.empty += 1;
    seen.text += choice?.delta?.content ?? '';
    seen.reasoning += choice?.delta?.reasoning_content ?? '';
    seen.finish = choice?.finish_reason ?? seen.finish;
    seen.usage = chunk.usage ?? seen.usage;
  }
  got[name] = seen;
}

// Tools: the SDK's own runner puts the pieces together, calls the function, and asks again.
{
  const called = [];
  const runner = client.chat.completions.runTools({
    model,
    stream: true,
    messages: user('script: tool add {"a": 1, "b": 2}'),
    tools: [
      {
        type: 'function',
        function: {
          name: 'add',
          description: 'Adds.',
          parameters: { type: 'object', properties: { a: { type: 'number' }, b: { type: 'number' } } },
          parse: JSON.parse,
          function: ({ a, b }) => {
            called.push([a, b]);
            return String(a + b);
          },
        },
      },
    ],
  }, { maxChatCompletions: 1 });
  const final = await runner.finalMessage().catch((error) => ({ content: `error: ${error.message}` }));
  got.tools = { called, roles: runner.messages.map((message) => message.role), last: final.content ?? null };
}

// Errors: before the answer, and in the middle of it.
const failed = async (work) => {
  try {
    await work();
    return null;
  } catch (error) {
    const { constructor, status, code, type, param } = error;
    return { name: constructor.name, status, code, type, param, retry: error.headers?.get?.('retry-after') ?? null };
  }
};
got.errors = {
  key: await failed(() => new OpenAI({ baseURL, apiKey: 'wrong', maxRetries: 0 }).chat.completions.create({ model, messages: user('x') })),
  model: await failed(() => client.chat.completions.create({ model: 'none', messages: user('x') })),
  request: await failed(() => client.chat.completions.create({ model, messages: [] })),
  limit: await failed(() => client.chat.completions.create({ model, messages: user('script: status 429 retry-after 7') })),
  middle: await failed(async () => {
    const stream = await client.chat.completions.create({ model, messages: user('script: say one; error broken'), stream: true });
    for await (const chunk of stream) void chunk;
  }),
};

// A client that leaves.
{
  const stream = await client.chat.completions.create({ model, messages: user('script: say one; stall'), stream: true });
  for await (const chunk of stream) if (chunk.choices[0]?.delta?.content) break;
  got.left = stream.controller.signal.aborted;
}

// Embeddings: base64 unasked, and floats.
{
  const input = ['one two', 'three'];
  const packed = await client.embeddings.create({ model, input, dimensions: 4 });
  const plain = await client.embeddings.create({ model, input: [[1, 2], [3]], encoding_format: 'float' });
  got.embeddings = {
    packed: packed.data.map((each) => Array.from(each.embedding)),
    plain: plain.data.map((each) => each.embedding),
    usage: packed.usage,
  };
}

got.models = [];
for await (const each of client.models.list()) got.models.push(each.id);

console.log(JSON.stringify(got));
