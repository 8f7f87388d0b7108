// A server's permission to join a room, in the form of LiveKit's token endpoints:
// https://docs.livekit.io/frontends/build/authentication/endpoint/
import { NO_TOKEN } from "./words.js";

export interface Token {
  serverUrl: string;
  participantToken: string;
}

/** There is no token; the message says why, in a sentence for the page. */
export class NoToken extends Error {}

/** A token for a new room, or for an earlier one that is still there. Raises NoToken. */
export async function newToken(earlierRoom: string | null): Promise<Token> {
  let answer: Record<string, unknown>;
  let ok: boolean;
  try {
    const response = await fetch("token", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(earlierRoom ? { room_name: earlierRoom } : {}),
    });
    ok = response.ok;
    answer = await response.json();
  } catch {
    throw new NoToken(NO_TOKEN);
  }
  const serverUrl = answer["server_url"] ?? answer["serverUrl"];
  const participantToken = answer["participant_token"] ?? answer["participantToken"];
  if (!ok || typeof serverUrl !== "string" || typeof participantToken !== "string")
    throw new NoToken(typeof answer["error"] === "string" ? answer["error"] : NO_TOKEN);
  return { serverUrl, participantToken };
}
