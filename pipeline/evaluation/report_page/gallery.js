// The cards, their controls, and their order. Videos and plots exist only near the screen: a browser plays some
// seventy videos at a time, and a long gallery has more.
const KINDS = { recorded: "Recorded", rollout: "Rollout", difference: "Difference, twice as bright" };
const NEAR_PX = 1200;
const TINY_PX = 96;  // wide: drawn with visible pixels, larger ones are smoothed
const PLAY_ICON = "M4 2.2v11.6L13.6 8z";
const PAUSE_ICON = "M3.4 2h3.4v12H3.4zM9.2 2h3.4v12H9.2z";

class Card {
  constructor(item, position) {
    Object.assign(this, { item, position });
    this.videos = Object.keys(KINDS).map((kind) => this.makeVideo(kind));
    this.updateActions = null;  // not drawn yet
    this.root = element("article", "card", this.makeHead(), this.makeVideos(), this.makeTimeLine(), this.makeReadout());
    this.actions = element("div", "actions");
    this.root.append(this.actions);
    this.root.tabIndex = 0;
    this.root.dataset.episode = item.episode_index;
    this.root.setAttribute("aria-label", `Episode ${item.episode_index}: ${item.task}`);
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.player = new Player(this.videos, {
      fps: item.fps,
      numFrames: item.num_frames,
      onFrame: (frame) => this.showFrame(frame),
      onState: (playing) => this.showState(playing),
    });
    this.showFrame(0);
  }

  makeHead() {
    const title = element("h3", "", this.item.task || "No task text", element("small", "", `Episode ${this.item.episode_index}`));
    const scores = element("dl", "card-scores", ...measuredScores().map((name) => {
      const entry = element("div", "", element("dt", "", page.scores[name].label), element("dd", "", formatScore(name, this.item.scores[name])));
      entry.dataset.score = name;
      return entry;
    }));
    return element("header", "card-head", title, scores);
  }

  makeVideo(kind) {
    const { path, width, height } = this.item.videos[kind];
    const video = element("video", width <= TINY_PX ? "tiny" : "");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", width, height });
    video.setAttribute("aria-label", `${KINDS[kind]}, episode ${this.item.episode_index}`);
    video.dataset.path = path;
    video.addEventListener("click", () => this.player.toggle());
    return video;
  }

  makeVideos() {
    return element("div", "videos", ...Object.values(KINDS).map((caption, i) => {
      const figure = element("figure", "", element("figcaption", "", caption), this.videos[i]);
      this.videos[i].addEventListener("error", () => {
        if (this.videos[i].error && this.videos[i].hasAttribute("src")) figure.append(element("p", "broken", "This video cannot be played here."));
      });
      return figure;
    }));
  }

  makeTimeLine() {
    this.playIcon = svgElement("path", { d: PLAY_ICON });
    this.playButton = element("button", "play", svgElement("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, this.playIcon));
    this.playButton.type = "button";
    this.playButton.addEventListener("click", () => this.player.toggle());
    this.slider = element("input", "");
    Object.assign(this.slider, { type: "range", min: 0, max: this.item.num_frames - 1, step: 1, value: 0 });
    this.slider.setAttribute("aria-label", "Frame");
    this.slider.addEventListener("input", () => this.player.show(Number(this.slider.value)));
    const label = element("p", "strip-label", "PSNR of each frame");
    const strip = element("div", "strip", scoreStrip(this.item), element("i", "cursor"));
    const scrubber = element("div", "scrubber", this.makeTicks(), this.slider);
    return element("div", "time-line", label, strip, element("div", "transport", this.playButton, this.makeSpeed()), scrubber);
  }

  makeSpeed() {
    const button = element("button", "quiet speed", "1×");
    button.type = "button";
    button.setAttribute("aria-label", "Playback speed");
    button.addEventListener("click", () => {
      const speed = SPEEDS[(SPEEDS.indexOf(this.player.speed) + 1) % SPEEDS.length];
      this.player.setSpeed(speed);
      button.textContent = `${{ 1: "1", 0.5: "½", 0.25: "¼" }[speed]}×`;
    });
    return button;
  }

  makeTicks() {
    const last = Math.max(this.item.num_frames - 1, 1);
    return element("div", "ticks", ...this.item.rollout_starts.map((frame) => {
      const tick = element("i", "");
      tick.style.left = `${(100 * frame) / last}%`;
      return tick;
    }));
  }

  makeReadout() {
    this.facts = {};
    return element("p", "readout", ...["Frame", "Dataset frame", "Step", "Time", "PSNR"].map((name) => {
      this.facts[name] = element("b", "");
      return element("span", "", `${name} `, this.facts[name]);
    }));
  }

  // Everything that follows the frame: slider, cursors, read-out, action values.
  showFrame(frame) {
    const { item } = this;
    const start = item.rollout_starts.filter((first) => first <= frame).at(-1) ?? 0;
    this.slider.value = frame;
    this.slider.setAttribute("aria-valuetext", `frame ${frame + 1} of ${item.num_frames}`);
    this.root.style.setProperty("--at", frame / Math.max(item.num_frames - 1, 1));
    this.facts["Frame"].textContent = `${frame + 1} of ${item.num_frames}`;
    this.facts["Dataset frame"].textContent = String(item.frame_indexes[frame]);
    this.facts["Step"].textContent = frame === start ? "given" : String(frame - start);
    this.facts["Time"].textContent = `${(frame / item.fps).toFixed(2)} s`;
    this.facts["PSNR"].textContent = formatScore("psnr", item.psnr[frame]);
    this.updateActions?.(frame);
  }

  showState(playing) {
    this.playIcon.setAttribute("d", playing ? PAUSE_ICON : PLAY_ICON);
    this.playButton.setAttribute("aria-label", playing ? "Pause" : "Play");
  }

  onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const onButton = event.target instanceof HTMLButtonElement;
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (event.key === " " && !onButton) this.player.toggle();
    else if (event.key in steps && event.target !== this.slider) this.player.show(this.player.frame + steps[event.key]);
    else return;
    event.preventDefault();
  }

  attach() {
    if (!this.updateActions) {
      this.updateActions = drawActions(this.actions, this.item);
      this.updateActions(this.player.frame);
    }
    for (const video of this.videos) if (!video.hasAttribute("src")) video.src = video.dataset.path;
  }

  detach() {
    this.player.pause();
    for (const video of this.videos) {
      if (!video.hasAttribute("src")) continue;
      video.removeAttribute("src");
      video.load();
    }
  }

  markSorted(name) {
    for (const entry of this.root.querySelectorAll("[data-score]")) entry.classList.toggle("sorted", entry.dataset.score === name);
  }
}

// What any episode was scored by.
function measuredScores() {
  return Object.keys(page.scores).filter((name) => page.gallery.some((item) => item.scores[name] != null));
}

// Cards in order of one score; those without it come last, whichever the direction. No score: the dataset's order.
function sortCards(cards, name, ascending) {
  const sign = ascending ? 1 : -1;
  const value = (card) => name ? card.item.scores[name] : card.item.episode_index;
  return cards.toSorted((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (left == null || right == null) return (left == null) - (right == null) || a.position - b.position;
    return sign * (left - right) || a.position - b.position;
  });
}

function setUpSorting(gallery, cards) {
  const select = document.getElementById("sort-by");
  const direction = document.getElementById("sort-direction");
  select.append(new Option("Episode", ""), ...measuredScores().map((name) => new Option(page.scores[name].label, name)));
  let ascending = true;
  const apply = () => {
    direction.textContent = ascending ? "↑ Lowest first" : "↓ Highest first";
    cards.forEach((card) => { card.player.pause(); card.markSorted(select.value); });
    gallery.append(...sortCards(cards, select.value, ascending).map((card) => card.root));
  };
  select.addEventListener("change", apply);
  direction.addEventListener("click", () => { ascending = !ascending; apply(); });
  apply();
}

function setUpGallery() {
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const cards = page.gallery.map((item, position) => new Card(item, position));
  const cardOf = new Map(cards.map((card) => [card.root, card]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const card = cardOf.get(entry.target);
      if (entry.isIntersecting) card.attach();
      else card.detach();
    }
  }, { rootMargin: `${NEAR_PX}px 0px` });
  cards.forEach((card) => { card.showState(false); observer.observe(card.root); });
  setUpSorting(gallery, cards);
}
