// One player at a time; another one of the same item goes on where the first was, so that they can be compared.
document.addEventListener("play", (event) => {
  const started = event.target;
  for (const other of document.querySelectorAll("audio")) {
    if (other === started || other.paused) continue;
    other.pause();
    const isSameItem = other.closest(".players") === started.closest(".players");
    if (isSameItem && other.currentTime < started.duration) started.currentTime = other.currentTime;
  }
}, true);
