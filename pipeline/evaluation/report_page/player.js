// Three videos as one: one frame number, one clock. The videos' frames correspond one to one, so a frame's time is the
// same in all; half a frame is added to be inside it whatever a container rounds.
const LOOP_HOLD_MS = 700;  // the last frame stays this long before the film begins anew
const SPEEDS = [1, 0.5, 0.25];
const CHECK_AFTER_MS = 120;  // a busy browser paints a frame this long after its seek has ended, or not at all
const MAX_CHECKS = 20;

class Player {
  constructor(videos, { fps, numFrames, onFrame, onState }) {
    Object.assign(this, { videos, fps, numFrames, onFrame, onState });
    this.clock = videos[1];
    this.frame = 0;
    this.speed = 1;
    this.playing = false;
    this.busy = new Set();  // videos whose seek is under way
    this.wanted = new Map();  // video → time to seek to after that
    this.painted = new Map();  // video → media time of the frame on screen
    this.checks = new Map();  // video → how often its last seek was asked for again
    for (const video of videos) {
      this.watch(video);
      video.addEventListener("loadedmetadata", () => this.onLoaded(video));
      video.addEventListener("seeked", () => this.onSeeked(video));
    }
    this.clock.addEventListener("ended", () => this.onEnded());
  }

  timeOf(frame) {
    return (frame + 0.5) / this.fps;
  }

  // Seeks never pile up while the slider is dragged: of those asked for meanwhile, the last one counts.
  seek(video, time) {
    this.wanted.set(video, time);
    this.seekNext(video);
  }

  seekNext(video) {
    if (this.busy.has(video) || !this.wanted.has(video) || video.readyState === 0) return;
    this.busy.add(video);
    this.checks.delete(video);
    video.currentTime = this.wanted.get(video);
    this.wanted.delete(video);
  }

  // Chromium may leave the frame of a seek on screen when the next one starts before it was painted: so wait for that.
  onSeeked(video) {
    requestAnimationFrame(() => requestAnimationFrame(() => {
      this.busy.delete(video);
      if (this.wanted.has(video)) this.seekNext(video);
      else setTimeout(() => this.check(video), CHECK_AFTER_MS);
    }));
  }

  watch(video) {
    video.requestVideoFrameCallback?.((_, shown) => {
      this.painted.set(video, shown.mediaTime);
      this.watch(video);
    });
  }

  // On a busy machine even a lone seek may end without being painted; then the same one is asked for again.
  check(video) {
    if (this.playing || this.busy.has(video) || !this.painted.has(video)) return;
    if (Math.round(this.painted.get(video) * this.fps) === Math.floor(video.currentTime * this.fps)) return;
    const checks = (this.checks.get(video) ?? 0) + 1;
    this.checks.set(video, checks);
    if (checks <= MAX_CHECKS) video.currentTime = video.currentTime;  // and its end leads here again
  }

  onLoaded(video) {
    this.busy.delete(video);
    this.seek(video, this.timeOf(this.frame));
  }

  tell(frame) {
    this.frame = Math.min(Math.max(frame, 0), this.numFrames - 1);
    this.onFrame(this.frame);
  }

  show(frame) {
    this.pause();
    this.tell(frame);
    for (const video of this.videos) this.seek(video, this.timeOf(this.frame));
  }

  async play() {
    if (this.playing) return;
    this.setPlaying(true);
    if (this.frame >= this.numFrames - 1) this.tell(0);
    for (const video of this.videos) {
      video.playbackRate = this.speed;
      this.seek(video, this.timeOf(this.frame));
    }
    try {
      await Promise.all(this.videos.map((video) => video.play()));
      this.follow();
    } catch {
      this.pause();  // the browser refused, or the card left the screen
    }
  }

  // Pausing leaves all three inside the same frame, whichever each had reached.
  pause() {
    if (!this.playing) return;
    this.setPlaying(false);
    for (const video of this.videos) {
      video.pause();
      video.playbackRate = this.speed;
      this.seek(video, this.timeOf(this.frame));
    }
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  setPlaying(playing) {
    this.playing = playing;
    clearTimeout(this.loop);
    this.onState(playing);
  }

  setSpeed(speed) {
    this.speed = speed;
    for (const video of this.videos) video.playbackRate = speed;
  }

  // Once per frame that the clock's video shows.
  follow() {
    const tick = (_, shown) => {
      if (!this.playing || this.clock.ended) return;
      const time = shown?.mediaTime == null ? this.clock.currentTime - 0.5 / this.fps : shown.mediaTime;
      this.tell(Math.round(time * this.fps));
      this.videos.forEach((video) => this.keepInStep(video));
      this.follow();
    };
    if (this.clock.requestVideoFrameCallback) this.clock.requestVideoFrameCallback(tick);
    else requestAnimationFrame(tick);
  }

  // A little off: slower or faster until in step, which nobody sees. Far off: a jump.
  keepInStep(video) {
    if (video === this.clock || video.seeking || video.ended) return;
    const ahead = (video.currentTime - this.clock.currentTime) * this.fps;  // frames
    if (Math.abs(ahead) > 2) video.currentTime = this.clock.currentTime;
    else if (Math.abs(ahead) > 0.5) video.playbackRate = this.speed * (ahead > 0 ? 0.8 : 1.25);
    else if (Math.abs(ahead) < 0.1) video.playbackRate = this.speed;
  }

  onEnded() {
    if (!this.playing) return;
    this.tell(this.numFrames - 1);
    this.loop = setTimeout(() => {
      this.setPlaying(false);
      this.play();
    }, LOOP_HOLD_MS);
  }
}
