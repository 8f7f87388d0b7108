// The page: shows a conversation, and hands on what is clicked and typed.
import { Conversation, type Line } from "./conversation.js";
import { AGENT_IS_HERE, ANNOUNCED, STATES, type State } from "./words.js";

const element = <E extends HTMLElement = HTMLElement>(id: string) =>
  document.getElementById(id) as E;
const [state, announcement, troubles, transcript] = [
  element("state"),
  element("announcement"),
  element("troubles"),
  element("transcript"),
];
const [talk, mute, hangUp, sound] = [
  element("talk"),
  element("mute"),
  element("hang-up"),
  element("sound"),
];
const [form, fields, text] = [
  element<HTMLFormElement>("write"),
  element<HTMLFieldSetElement>("fields"),
  element<HTMLInputElement>("text"),
];
const shown = new Map<string, HTMLElement>();

let conversation: Conversation | undefined;
let announced: State | undefined;
let follows = true;

function begin(room: string, lines: [string, Line][]): void {
  announced = undefined;
  conversation = new Conversation(show, lines);
  show();
  void conversation.begin(room);
}

function show(): void {
  if (!conversation) return;
  const isOver = conversation.state === "ended";
  document.body.dataset["state"] = conversation.state;
  const sentence = isOver ? `${STATES.ended}. ${conversation.end}` : STATES[conversation.state];
  write(state, sentence);
  announce(conversation.state, sentence);
  write(troubles, [...conversation.troubles.values()].join("\n"));
  showButtons(isOver, conversation);
  showLines(conversation);
}

/** Not every turn: a screen reader would talk into the agent's words. */
function announce(now: State, sentence: string): void {
  if (now === announced) return;
  if (now === "ended" || ANNOUNCED.has(now)) write(announcement, sentence);
  else if (announced && ANNOUNCED.has(announced)) write(announcement, AGENT_IS_HERE);
  announced = now;
}

function showButtons(isOver: boolean, { isHeard, microphone }: Conversation): void {
  const focused = document.activeElement;
  write(talk, "Talk again");
  talk.hidden = !isOver;
  mute.hidden = hangUp.hidden = isOver;
  // not `disabled`, which would take the focus away
  mute.ariaDisabled = String(microphone === "starting");
  write(mute, microphone === "off" ? "Unmute" : "Mute");
  sound.hidden = isOver || isHeard;
  fields.disabled = isOver;
  // what had the focus may be gone; it goes where a key that is still held down does nothing
  const isGone = focused === text ? isOver : focused instanceof HTMLElement && focused.hidden;
  if (isGone) state.focus();
}

function showLines({ lines, isHeard }: Conversation): void {
  for (const [id, line] of shown) {
    if (lines.has(id)) continue;
    line.remove();
    shown.delete(id);
  }
  for (const [id, { who, text }] of lines) {
    let line = shown.get(id);
    if (!line) {
      line = document.createElement("p");
      line.className = who;
      const name = document.createElement("b");
      name.textContent = who === "you" ? "You" : "Agent";
      line.append(name, document.createElement("span"));
      shown.set(id, line);
      transcript.append(line);
    }
    write(line.lastElementChild as HTMLElement, text);
  }
  // read aloud only to those who do not hear it
  transcript.setAttribute("aria-live", isHeard ? "off" : "polite");
  followIt();
}

/** Show the end of the transcript, unless somebody is reading further up. */
function followIt(): void {
  if (follows) transcript.scrollTop = transcript.scrollHeight;
}

function write(into: HTMLElement, words: string): void {
  if (into.textContent !== words) into.textContent = words;
}

// ------------------------------------------------------------------ a page that is reloaded

const KEPT = "conversation";
// a server waits about so long for who comes back; later, nobody expects to be listened to
const BACK_MS = 60_000;

type Kept = [left: number, room: string, lines: [string, Line][]];

/** What a page needs that is loaded in the place of this one. */
function keep(): void {
  if (!conversation?.room || conversation.state === "ended") return;
  // the rest of a line is not sent again
  const lines = [...conversation.lines].map(([id, line]): [string, Line] => [
    id,
    { who: line.who, text: line.isOpen ? `${line.text} …` : line.text },
  ]);
  const kept: Kept = [Date.now(), conversation.room, lines];
  try {
    sessionStorage.setItem(KEPT, JSON.stringify(kept));
  } catch {
    // a browser that keeps nothing: the page will wait for a click
  }
}

/** Go on in the conversation that the page before this one has just left. */
function goOn(): void {
  try {
    const kept: Kept | null = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    sessionStorage.removeItem(KEPT);
    if (!kept) return;
    const [left, room, lines] = kept;
    if (Date.now() - left < BACK_MS) begin(room, lines);
  } catch {
    // as above
  }
}

// ------------------------------------------------------------------ what the caller does

talk.addEventListener("click", () => begin("", []));
hangUp.addEventListener("click", () => conversation?.hangUp());
mute.addEventListener("click", () => {
  if (conversation && mute.ariaDisabled === "false")
    void conversation.mute(conversation.microphone === "on");
});
sound.addEventListener("click", () => void conversation?.play());
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (text.value.trim()) conversation?.write(text.value.trim());
  text.value = "";
});

transcript.addEventListener("scroll", () => {
  follows = transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 8;
});
new ResizeObserver(followIt).observe(transcript);

addEventListener("pagehide", keep);
goOn();
