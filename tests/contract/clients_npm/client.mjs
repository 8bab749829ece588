// The npm clients against bellmare: each group of tests is one client. Prints one line of JSON: name to error or null.
import assert from 'node:assert/strict'
import { generateText, generateObject, streamText, embedMany, tool, stepCountIs } from 'ai'
import { createOllama } from 'ai-sdk-ollama'
import { Ollama } from 'ollama'
import OpenAI from 'openai'
import { z } from 'zod'

const place = process.env
const url = place.BELLMARE_URL
const talker = place.BELLMARE_TALKER
const messages = [{ role: 'user', content: 'Say hello.' }]
const asked = [{ role: 'user', content: 'What is the weather in Oslo?' }]
const options = { num_predict: 20 }
const person = {
  type: 'object',
  properties: { name: { type: 'string' }, age: { type: 'integer' } },
  required: ['name', 'age'],
}
const weather = {
  type: 'function',
  function: {
    name: 'get_weather',
    description: 'The weather of a city.',
    parameters: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
  },
}

const json = async (path, body, base = place.BELLMARE_WORKER_URL) => {
  const init = body ? { method: 'POST', body: JSON.stringify(body) } : {}
  return (await fetch(base + path, init)).json()
}
const fault = (kind, more = {}) => json('/sim/fault', { kind, ...more })
const cancelled = async () => (await json('/api/bellmare')).counters.cancelled_total
const untilCancelled = async (before) => {
  for (const end = Date.now() + 20_000; (await cancelled()) <= before; ) {
    assert(Date.now() < end, 'the worker works on for nobody')
    await new Promise((done) => setTimeout(done, 10))
  }
}
const texts = async (stream, text) => {
  const parts = []
  for await (const part of stream) parts.push(text(part))
  return parts
}

const groups = {
  async ollama(test) {
    const client = new Ollama({ host: url })
    await test('lists, shows, runs', async () => {
      assert((await client.list()).models.some((one) => one.model === talker))
      assert((await client.show({ model: talker })).capabilities.includes('completion'))
      await client.generate({ model: talker, prompt: 'x', options })
      assert((await client.ps()).models.some((one) => one.model === talker))
    })
    await test('answers and streams', async () => {
      const whole = await client.chat({ model: talker, messages, options })
      assert(whole.message.content && whole.done && whole.eval_count === 20)
      const parts = await texts(await client.chat({ model: talker, messages, options, stream: true }), (one) => one)
      assert.equal(parts.map((one) => one.message.content).join(''), whole.message.content)
      assert(parts.at(-1).done && !parts[0].done)
    })
    await test('calls tools', async () => {
      const answer = await client.chat({ model: talker, messages: asked, tools: [weather] })
      const [call] = answer.message.tool_calls
      assert.deepEqual([call.function.name, call.function.arguments], ['get_weather', { city: 'Oslo' }])
      const told = [...asked, answer.message, { role: 'tool', tool_name: 'get_weather', content: 'rain' }]
      assert.equal((await client.chat({ model: talker, messages: told })).message.content, 'The result is rain.')
    })
    await test('obeys a schema', async () => {
      const told = [{ role: 'user', content: "Who is 'Ada', aged 36?" }]
      const answer = await client.chat({ model: talker, messages: told, format: person })
      assert.deepEqual(JSON.parse(answer.message.content), { name: 'Ada', age: 36 })
    })
    await test('thinks', async () => {
      const answer = await client.chat({ model: place.BELLMARE_THINKER, messages, think: true })
      assert(answer.message.thinking && answer.message.content)
    })
    await test('embeds', async () => {
      const found = await client.embed({ model: place.BELLMARE_EMBEDDER, input: ['one', 'two'] })
      assert.deepEqual(found.embeddings.map((one) => one.length), [768, 768])
    })
    await test('errors', async () => {
      for (const stream of [false, true]) {
        const ask = async () => texts((await client.chat({ model: 'nobody:1', messages, stream })) ?? [], String)
        await assert.rejects(ask, (error) => error.name === 'ResponseError' && error.status_code === 404)
      }
      await assert.rejects(client.chat({ model: talker, messages, think: true }), /does not support thinking/)
      await assert.rejects(new Ollama({ host: place.BELLMARE_CLOSED_URL }).list(), /fetch failed/)
    })
    await test('a failure in mid-stream', async () => {
      await fault('error_after', { tokens: 5 })
      const ask = async () => texts(await client.chat({ model: talker, messages, stream: true }), String)
      await assert.rejects(ask, /running the model|worker/)
    })
    await test('leaves', async () => {
      const before = await cancelled()
      const stream = await client.chat({ model: talker, messages, stream: true, options: { num_predict: 400_000 } })
      await assert.rejects(async () => {
        for await (const _ of stream) client.abort()
      })
      await untilCancelled(before)
    })
  },
  async openai(test) {
    const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'none', maxRetries: 0 })
    const chat = (more) => client.chat.completions.create({ model: talker, messages, max_tokens: 20, ...more })
    await test('lists', async () => {
      const names = await texts(client.models.list(), (one) => one.id)
      assert(names.includes(talker))
      assert.equal((await client.models.retrieve('me/talker:1')).id, 'me/talker:1')
    })
    await test('answers and streams', async () => {
      const whole = await chat()
      assert(whole.choices[0].message.content && whole.usage.completion_tokens === 20)
      const stream = await chat({ stream: true, stream_options: { include_usage: true } })
      const chunks = await texts(stream, (one) => one)
      const said = chunks.map((one) => one.choices[0]?.delta.content ?? '').join('')
      assert.equal(said, whole.choices[0].message.content)
      assert.equal(chunks.at(-1).usage.completion_tokens, 20)
    })
    await test('calls tools', async () => {
      const runner = client.chat.completions.runTools({
        model: talker,
        messages: asked,
        tools: [{
          type: 'function',
          function: { ...weather.function, parse: JSON.parse, function: ({ city }) => `rain in ${city}` },
        }],
      })
      assert.equal(await runner.finalContent(), 'The result is rain in Oslo.')
    })
    await test('obeys a schema', async () => {
      const response_format = { type: 'json_schema', json_schema: { name: 'person', schema: person } }
      const whole = await chat({ messages: [{ role: 'user', content: "Who is 'Ada', aged 36?" }], response_format })
      assert.deepEqual(JSON.parse(whole.choices[0].message.content), { name: 'Ada', age: 36 })
    })
    await test('responds', async () => {
      const whole = await client.responses.create({ model: talker, input: 'Say hello.' })
      const events = await texts(
        await client.responses.create({ model: talker, input: 'Say hello.', stream: true }), (one) => one)
      const said = events.filter((one) => one.type === 'response.output_text.delta').map((one) => one.delta).join('')
      assert.equal(said, whole.output_text)
      assert.equal(events.at(-1).type, 'response.completed')
    })
    await test('embeds', async () => {
      const found = await client.embeddings.create({ model: place.BELLMARE_EMBEDDER, input: ['one', 'two'] })
      assert.deepEqual(found.data.map((one) => one.embedding.length), [768, 768])
    })
    await test('errors', async () => {
      await assert.rejects(chat({ model: 'nobody:1' }), (error) => error.status === 404)
      await assert.rejects(chat({ messages: [] }), (error) => error.status === 400)
      const nobody = new OpenAI({ baseURL: place.BELLMARE_CLOSED_URL, apiKey: 'none', maxRetries: 0 })
      await assert.rejects(nobody.models.list(), OpenAI.APIConnectionError)
    })
    await test('a failure in mid-stream', async () => {
      await fault('error_after', { tokens: 5 })
      await assert.rejects(async () => texts(await chat({ stream: true, max_tokens: 50 }), String))
    })
    await test('leaves', async () => {
      const before = await cancelled()
      const stream = await chat({ stream: true, max_tokens: 400_000 })
      for await (const _ of stream) break
      await untilCancelled(before)
    })
  },
  async 'ai-sdk-ollama'(test) {
    const ollama = createOllama({ baseURL: url })
    const model = ollama(talker)
    await test('answers and streams', async () => {
      const whole = await generateText({ model, prompt: 'Say hello.', maxOutputTokens: 20 })
      assert(whole.text && whole.usage.outputTokens === 20)
      const stream = streamText({ model, prompt: 'Say hello.', maxOutputTokens: 20 })
      assert.equal((await texts(stream.textStream, (one) => one)).join(''), whole.text)
    })
    await test('calls tools', async () => {
      const tools = {
        get_weather: tool({
          description: 'The weather of a city.',
          inputSchema: z.object({ city: z.string() }),
          execute: async ({ city }) => `rain in ${city}`,
        }),
      }
      const prompt = 'What is the weather in Oslo?'
      const whole = await generateText({ model, tools, prompt, stopWhen: stepCountIs(3) })
      const calls = whole.steps.flatMap((step) => step.toolCalls)
      assert.deepEqual([calls[0].toolName, calls[0].input], ['get_weather', { city: 'Oslo' }])
      assert.match(whole.text, /rain in Oslo/)
    })
    await test('obeys a schema', async () => {
      const schema = z.object({ name: z.string(), age: z.number().int() })
      const strict = ollama(talker, { structuredOutputs: true })
      const whole = await generateObject({ model: strict, schema, prompt: "Who is 'Ada', aged 36?" })
      assert.deepEqual(whole.object, { name: 'Ada', age: 36 })
    })
    await test('thinks', async () => {
      const whole = await generateText({ model: ollama(place.BELLMARE_THINKER, { think: true }), prompt: 'x' })
      assert(whole.reasoningText && whole.text)
    })
    await test('embeds', async () => {
      const found = await embedMany({ model: ollama.embedding(place.BELLMARE_EMBEDDER), values: ['one', 'two'] })
      assert.deepEqual(found.embeddings.map((one) => one.length), [768, 768])
    })
    await test('errors', async () => {
      await assert.rejects(generateText({ model: ollama('nobody:1'), prompt: 'x', maxRetries: 0 }), /not found/)
    })
    await test('leaves', async () => {
      const before = await cancelled()
      // Its doStream does not hand abortSignal to the request (3.8.8), so the request gets it here.
      const leaving = new AbortController()
      const left = createOllama({ baseURL: url, fetch: (to, init) => fetch(to, { ...init, signal: leaving.signal }) })
      const stream = streamText({ model: left(talker), prompt: 'x', maxOutputTokens: 400_000, onError: () => {} })
      try {
        for await (const _ of stream.textStream) leaving.abort()
      } catch {}
      await untilCancelled(before)
    })
  },
}

const found = {}
const group = process.argv[2]
await groups[group](async (name, run) => {
  try {
    await run()
    found[name] = null
  } catch (error) {
    found[name] = String(error?.stack ?? error)
  }
})
console.log(JSON.stringify(found))
process.exit(0)
