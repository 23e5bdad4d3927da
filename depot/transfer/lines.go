package transfer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxLine is how long a line may be.
const maxLine = 8 << 20

// lines reads lines of bounded length.
type lines struct {
	r *bufio.Reader
	n int // of the line read last
}

func newLines(r io.Reader) *lines { return &lines{r: bufio.NewReaderSize(r, 1<<16)} }

// next returns the next line without its end, or io.EOF. The slice is the caller's.
func (l *lines) next() ([]byte, error) {
	var line []byte
	l.n++
	for {
		part, err := l.r.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			return nil, fmt.Errorf("transfer: line %d is longer than %d bytes", l.n, maxLine)
		}
		line = append(line, part...)
		switch {
		case err == bufio.ErrBufferFull:
		case err == nil, err == io.EOF && len(line) > 0:
			return bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r")), nil
		case err == io.EOF:
			return nil, io.EOF
		default:
			return nil, fmt.Errorf("transfer: reading: %w", err)
		}
	}
}

const (
	width = 256 // how many records are written at once: depots let writers share commits
	load  = 64  // how many a Loader is given at a time
	loads = 8   // how many of these at once; PostgreSQL has 10 connections
)

// together returns a next that returns what next does, n at a time but for the last.
func together[T any](next func() (T, error), n int) func() ([]T, error) {
	return func() (all []T, err error) {
		for len(all) < n {
			item, err := next()
			if err == io.EOF && len(all) > 0 {
				break
			}
			if err != nil {
				return nil, err
			}
			all = append(all, item)
		}
		return all, nil
	}
}

// parallel calls do for what next returns, so many at once, until next returns io.EOF, or one
// of them an error. It returns when all calls have.
func parallel[T any](ctx context.Context, width int, next func() (T, error), do func(context.Context, T) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan T)
	var group sync.WaitGroup
	for range width {
		group.Go(func() {
			for item := range work {
				if ctx.Err() != nil {
					continue
				}
				if err := do(ctx, item); err != nil {
					cancel(err) // the first is kept
				}
			}
		})
	}
	for ctx.Err() == nil {
		item, err := next()
		if err == io.EOF {
			break
		}
		if err != nil {
			cancel(err)
			break
		}
		select {
		case work <- item:
		case <-ctx.Done():
		}
	}
	close(work)
	group.Wait()
	return context.Cause(ctx)
}

// A tally counts what is done, and says so now and then.
type tally struct {
	mu               sync.Mutex
	created, skipped int
	progress         func(n int)
	report           func(name string, err error)
	bad              map[string]bool // what was reported
}

func (t *tally) count(created bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if created {
		t.created++
	} else {
		t.skipped++
	}
	if n := t.created + t.skipped; t.progress != nil && n%256 == 0 {
		t.progress(n)
	}
}

// problem reports what is wrong with something.
func (t *tally) problem(name string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.bad == nil {
		t.bad = make(map[string]bool)
	}
	t.bad[name] = true
	if t.report != nil {
		t.report(name, err)
	}
}

func (t *tally) end(err error) (created, skipped int, _ error) {
	if t.progress != nil {
		t.progress(t.created + t.skipped)
	}
	if err == nil && len(t.bad) > 0 {
		err = fmt.Errorf("%w: %d were reported", ErrIncomplete, len(t.bad))
	}
	return t.created, t.skipped, err
}

// ErrIncomplete says that all was imported but what was reported.
var ErrIncomplete = errors.New("transfer: not everything was imported")
