// One conversation with the agent in a LiveKit room, as what a page shows of it.
import {
  ConnectionState,
  DisconnectReason,
  LogLevel,
  type RemoteParticipant,
  type RemoteTrack,
  Room,
  RoomEvent,
  type TextStreamReader,
  Track,
  setLogLevel,
} from "livekit-client";
import { NoToken, newToken } from "./token.js";
import * as words from "./words.js";

setLogLevel(LogLevel.warn);

// A recording of what is said before the agent comes loses its last 60 to 180 ms in livekit-client
// 2.23, which is a gap in the middle of a word. It goes on for a moment beside the live sound, and
// the agent joins the two where they are alike.
const SEAM_MS = 400;
const stop = MediaRecorder.prototype.stop;
MediaRecorder.prototype.stop = function () {
  setTimeout(() => this.state === "inactive" || stop.call(this), SEAM_MS);
};

// how long the agent is waited for in silence
const PATIENCE_MS = 15_000;

export interface Line {
  who: "you" | "agent";
  text: string;
  /** More of it is coming, to this page and to no other. */
  isOpen?: boolean;
}

/** What is not as it should be, each in a sentence. */
export type Trouble = "agent" | "microphone" | "text";

export class Conversation {
  state: words.State = "connecting";
  /** Why it ended, in a sentence. */
  end = "";
  readonly troubles = new Map<Trouble, string>();
  /** What both have said, in order: a segment is corrected as it is heard, and is one line. */
  readonly lines: Map<string, Line>;
  microphone: "starting" | "on" | "off" = "starting";

  readonly #room: Room;
  readonly #changed: () => void;
  #agentCame = false;
  #agentIsHere = () => {};
  /** What was typed is sent one after another, from when the agent can read it. */
  #sending: Promise<void>;
  #patience: ReturnType<typeof setTimeout> | undefined;

  /** `changed` is called after every change; `lines` are those from before the page was reloaded. */
  constructor(changed: () => void, lines: Iterable<[string, Line]>) {
    this.#changed = changed;
    this.lines = new Map(lines);
    this.#sending = new Promise((resolve) => (this.#agentIsHere = resolve));
    this.#room = new Room({
      // who reloads the page goes on; nothing tells that from closing it
      disconnectOnPageLeave: false,
      // only here livekit-client looks for it: as an option of publishing it does nothing
      publishDefaults: { preConnectBuffer: true },
    });
    const look = () => this.#look();
    this.#room
      // from here on what is said is recorded until the agent hears it
      .once(RoomEvent.SignalConnected, () => void this.mute(false))
      .on(RoomEvent.TrackSubscribed, (track) => this.#hear(track))
      .on(RoomEvent.TrackUnsubscribed, (track) => track.detach().forEach((e) => e.remove()))
      .on(RoomEvent.TrackMuted, (_, who) => who.isLocal && this.#microphoneIsOff())
      .on(RoomEvent.AudioPlaybackStatusChanged, look)
      .on(RoomEvent.ParticipantConnected, look)
      // `isActive` is set after its event
      .on(RoomEvent.ParticipantActive, () => queueMicrotask(look))
      .on(RoomEvent.ParticipantDisconnected, look)
      .on(RoomEvent.ParticipantAttributesChanged, look)
      .on(RoomEvent.ConnectionStateChanged, look);
    this.#room.registerTextStreamHandler("lk.transcription", (reader, { identity }) =>
      this.#read(reader, identity),
    );
  }

  get room(): string {
    return this.#room.name;
  }

  /** Whether the browser plays the agent's voice; some want a click for it. */
  get isHeard(): boolean {
    return this.#room.canPlaybackAudio;
  }

  /** Join a new room, or an earlier one that is still there. How it goes is in the fields. */
  async begin(earlierRoom: string): Promise<void> {
    try {
      const { serverUrl, participantToken } = await newToken(earlierRoom);
      if (this.state === "ended") return;
      await this.#room.connect(serverUrl, participantToken);
      // not before: where connecting fails it comes too, with another reason than the error's
      this.#room.on(RoomEvent.Disconnected, (reason) => this.#over(words.whyEnded(reason)));
    } catch (error) {
      this.#over(error instanceof NoToken ? error.message : words.whyNotConnected(error));
      return;
    }
    if (this.room !== earlierRoom) this.lines.clear();
    this.#look();
    if (this.#agentCame) return;
    this.#patience = setTimeout(() => this.#trouble("agent", words.NO_AGENT), PATIENCE_MS);
  }

  hangUp(): void {
    this.#over(words.whyEnded(DisconnectReason.CLIENT_INITIATED));
  }

  /** Switch the microphone off, or on; also again, after it has failed. */
  async mute(off: boolean): Promise<void> {
    this.microphone = "starting";
    this.#changed();
    try {
      await this.#room.localParticipant.setMicrophoneEnabled(!off);
      this.microphone = off ? "off" : "on";
      this.#trouble("microphone", "");
    } catch (error) {
      this.microphone = "off";
      this.#trouble("microphone", words.whyNoMicrophone(error));
    }
  }

  /** Send a line that was typed. */
  write(text: string): void {
    this.lines.set(`typed ${this.lines.size}`, { who: "you", text });
    this.#trouble("text", "");
    this.#sending = this.#sending.then(async () => {
      try {
        await this.#room.localParticipant.sendText(text, { topic: "lk.chat" });
      } catch {
        this.#trouble("text", words.NOT_SENT);
      }
    });
  }

  /** Play the agent's voice; called from a click. */
  async play(): Promise<void> {
    await this.#room.startAudio();
  }

  #look(): void {
    if (this.state === "ended") return;
    const agent = [...this.#room.remoteParticipants.values()].find((who) => who.isAgent);
    if (agent?.isActive && !this.#agentCame) {
      this.#agentCame = true;
      clearTimeout(this.#patience);
      this.#agentIsHere();
    }
    this.state = this.#stateWith(agent);
    if (agent) this.troubles.delete("agent");
    else if (this.state === "left") this.troubles.set("agent", words.AGENT_LEFT);
    this.#changed();
  }

  #stateWith(agent: RemoteParticipant | undefined): words.State {
    switch (this.#room.state) {
      case ConnectionState.Connected:
        break;
      case ConnectionState.Connecting:
      case ConnectionState.Disconnected:
        return "connecting";
      default:
        return "reconnecting";
    }
    const does = agent?.attributes["lk.agent.state"];
    if (does === "thinking" || does === "speaking") return does;
    if (does === "listening" || does === "idle") return "listening";
    return agent || !this.#agentCame ? "joining" : "left";
  }

  #hear(track: RemoteTrack): void {
    if (track.kind === Track.Kind.Audio) document.body.append(track.attach());
  }

  async #read(reader: TextStreamReader, identity: string): Promise<void> {
    const id = reader.info.attributes?.["lk.segment_id"] ?? reader.info.id;
    const who = identity === this.#room.localParticipant.identity ? "you" : "agent";
    let text = "";
    for await (const piece of reader) {
      text += piece;
      if (!text.trim()) continue;
      this.lines.set(id, { who, text: text.trim(), isOpen: true });
      this.#changed();
    }
    const line = this.lines.get(id);
    if (line) line.isOpen = false;
  }

  /** Muted by nobody: the browser has taken the microphone away, and there is no other. */
  #microphoneIsOff(): void {
    if (this.microphone !== "on") return;
    this.microphone = "off";
    this.#trouble("microphone", words.whyNoMicrophone(undefined));
  }

  /** After the end there is none: what fails then is its consequence. */
  #trouble(what: Trouble, sentence: string): void {
    if (sentence && this.state !== "ended") this.troubles.set(what, sentence);
    else this.troubles.delete(what);
    this.#changed();
  }

  /** The first cause counts: what follows is its consequence. */
  #over(why: string): void {
    if (this.state === "ended") return;
    this.state = "ended";
    this.end = why;
    this.troubles.clear();
    clearTimeout(this.#patience);
    void this.#room.disconnect();
    this.#changed();
  }
}
