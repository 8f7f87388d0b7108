// Every sentence of the page that is not in index.html.
import { ConnectionError, ConnectionErrorReason, DisconnectReason } from "livekit-client";

/** What the conversation is doing. */
export type State =
  | "connecting"
  | "joining"
  | "left"
  | "listening"
  | "thinking"
  | "speaking"
  | "reconnecting"
  | "ended";

export const STATES: Record<State, string> = {
  connecting: "Connecting …",
  joining: "The agent is joining …",
  left: "Waiting for the agent …",
  listening: "Listening",
  thinking: "Thinking",
  speaking: "Speaking",
  reconnecting: "The connection is broken. Trying again …",
  ended: "Ended",
};

/** Those that a screen reader says; it would otherwise talk into every turn of the conversation. */
export const ANNOUNCED: ReadonlySet<State> = new Set([
  "connecting",
  "joining",
  "left",
  "reconnecting",
]);
export const AGENT_IS_HERE = "The agent is here.";

export const NO_AGENT =
  "No agent has come yet. It may still come; if you run it yourself, see whether its worker is running.";
export const AGENT_LEFT =
  "The agent is gone. It may come back; otherwise hang up, and then choose “Talk again”.";
export const NO_TOKEN =
  "The server of this page does not answer. If you run it yourself, see whether it is running; then choose “Talk again”.";
export const NOT_SENT = "This was not sent. Please send it again.";

/** Why a conversation ended; `undefined` where only the connection is gone. */
export function whyEnded(reason: DisconnectReason | undefined): string {
  switch (reason) {
    case DisconnectReason.CLIENT_INITIATED:
      return "You hung up.";
    case DisconnectReason.ROOM_DELETED:
    case DisconnectReason.ROOM_CLOSED:
      return "The agent has ended the conversation.";
    case DisconnectReason.DUPLICATE_IDENTITY:
      return "The conversation goes on in another tab or window.";
    case DisconnectReason.PARTICIPANT_REMOVED:
      return "You were removed from the conversation.";
    case DisconnectReason.SERVER_SHUTDOWN:
      return "The voice server was stopped. Choose “Talk again” in a moment.";
    default:
      return "The connection to the voice server is lost. See whether you are online; then choose “Talk again”.";
  }
}

/** Why a conversation could not begin. */
export function whyNotConnected(error: unknown): string {
  if (error instanceof ConnectionError && error.reason === ConnectionErrorReason.NotAllowed)
    return "The permission for this conversation has run out or is not valid. Choose “Talk again” to get a new one.";
  return "The voice server does not answer. See whether you are online; if you run it yourself, see whether it is running. Then choose “Talk again”.";
}

/** Why nothing can be heard of the caller. */
export function whyNoMicrophone(error: unknown): string {
  const next = "then choose “Unmute”. Or write, below.";
  if (!navigator.mediaDevices)
    return "Browsers allow a microphone only on pages with https, or on this machine itself. You can write, below.";
  switch (error instanceof Error ? error.name : "") {
    case "NotAllowedError":
      return `This page may not use the microphone. Allow it in the browser, beside the page's address; ${next}`;
    case "NotFoundError":
    case "OverconstrainedError":
      return `There is no microphone. Connect one, ${next}`;
    case "NotReadableError":
      return `The microphone does not work. See whether another program is using it, ${next}`;
    default:
      return `The microphone is gone. See whether it is connected and allowed, ${next}`;
  }
}
