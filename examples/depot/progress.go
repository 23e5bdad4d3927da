package main

import (
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// progress shows how far a command has come: at a terminal in one line that it writes again and
// again, elsewhere in a line from time to time. It may be used concurrently.
type progress struct {
	w        io.Writer
	what     string // "exported"
	terminal bool
	every    time.Duration

	mu          sync.Mutex
	begun, told time.Time
	n           int
	done        float64 // which part of all, or 0 if that is not known
	shown       int     // how long the line at the terminal is
}

// newProgress returns one that is not shown for the first moments.
func (c *command) newProgress(what string) *progress {
	p := &progress{w: c.stderr, what: what, every: 10 * time.Second, begun: time.Now(), told: time.Now()}
	if isTerminal(c.stderr) {
		p.terminal, p.every = true, 200*time.Millisecond
	}
	return p
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// count says how many there are so far.
func (p *progress) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n = n
	if time.Since(p.told) >= p.every {
		p.tell()
	}
}

// part says which part of all is done, from 0 to 1.
func (p *progress) part(done float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = max(p.done, done) // what is read ahead comes in no order
}

// tell shows the line.
func (p *progress) tell() {
	p.told = time.Now()
	took := p.told.Sub(p.begun)
	line := fmt.Sprintf("%s so far: %d, %.0f/s", p.what, p.n, float64(p.n)/took.Seconds())
	if 0 < p.done && p.done <= 1 {
		left := time.Duration(float64(took) * (1 - p.done) / p.done)
		line += fmt.Sprintf(", %.1f%% of about %.0f, %v left", 100*p.done, float64(p.n)/p.done, left.Round(time.Second))
	}
	if !p.terminal {
		fmt.Fprintln(p.w, line)
		return
	}
	fmt.Fprintf(p.w, "\r%s%s", line, strings.Repeat(" ", max(0, p.shown-len(line))))
	p.shown = len(line)
}

// end takes the line away from the terminal, and returns how many there were, and how fast.
func (p *progress) end() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shown > 0 {
		fmt.Fprintf(p.w, "\r%s\r", strings.Repeat(" ", p.shown))
		p.shown = 0
	}
	return fmt.Sprintf("%d in %v", p.n, time.Since(p.begun).Round(time.Millisecond))
}

// position returns where among all IDs one is, from 0 to 1. IDs are hashes, so it is also which
// part of the records comes before it.
func position(id scep.ID) float64 {
	if !id.Valid() {
		return 0
	}
	first, _ := hex.DecodeString(string(id[:4]))
	return float64(int(first[0])<<8|int(first[1])) / (1 << 16)
}
