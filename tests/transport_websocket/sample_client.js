// The client of the protocol page and nothing more: runs in Node and in a browser. `say(text)` reports what it saw.
function sample(url, token, say) {
  const socket = new WebSocket(url);
  let answer = "";
  socket.onopen = () => {
    socket.send(JSON.stringify({ type: "auth", token }));
    socket.send(JSON.stringify({
      type: "llm_request", model: "gpt-4-turbo", prompt: "say Hel lo, wörld 😀",
      parameters: { max_tokens: 500, temperature: 0.7, stream: true },
      metadata: { user_id: "user123", priority: "normal" },
    }));
  };
  socket.onmessage = (event) => {
    const frame = JSON.parse(event.data);
    if (frame.type === "llm_token") answer += frame.content;
    if (frame.type === "llm_response_end") {
      socket.send(JSON.stringify({ type: "llm_request", model: "gpt-4-turbo", prompt: 7 }));
    }
    if (frame.type === "error") {
      answer += "|" + frame.code + " " + frame.message.slice(0, 21);
      socket.close(1000);
    }
  };
  socket.onclose = (event) => say(answer + "|" + event.code + (event.wasClean ? " clean" : ""));
}
