package transfer

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/scepkit/scepkit/scep"
)

const (
	page    = 128  // how many records are read at a time
	segment = 1024 // how many records a segment has, more or less
	ahead   = 6    // how many segments are read at once; SQLite has 8 readers, PostgreSQL 10 connections
)

// Each calls f with the records that q selects, in the order of their IDs, a page at a time, until
// f returns an error, which it returns as it is. q.Limit is not looked at. f is not called by two
// goroutines at once, and may keep what it is given.
//
// It reads ahead, several pages at once: records are stored in the order in which they came, so in
// that of their IDs each is somewhere else on the disk. Where the order does not matter,
// [scep.Scanner] takes a fraction of the time.
func Each(ctx context.Context, from scep.Lister, q scep.Query, f func([]*scep.Record) error) error {
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()

	q.Limit = page
	first, err := from.List(ctx, q)
	if err != nil {
		return fmt.Errorf("transfer: listing: %w", err)
	}
	if len(first) == 0 {
		return nil
	}
	begin := q.After
	if q.After = first[len(first)-1].ID; q.After <= begin {
		return fmt.Errorf("transfer: listing: record %s comes after %s", q.After, begin)
	}
	bounds := divide(begin, q.After, len(first))

	segments := make(chan chan pageOf, ahead-2) // one is being handed over, and one is being written
	group.Go(func() {
		defer close(segments)
		begin := q.After
		for _, end := range append(bounds, "") {
			q := q
			q.After, begin = begin, end
			s := make(chan pageOf, segment/page)
			select {
			case segments <- s:
			case <-ctx.Done():
				return
			}
			group.Go(func() { read(ctx, from, q, end, s) })
		}
	})
	if err := f(first); err != nil {
		return err
	}
	last := q.After
	for s := range segments {
		for p := range s {
			if p.err != nil {
				return p.err
			}
			for _, rec := range p.all {
				if rec.ID <= last {
					return fmt.Errorf("transfer: listing: record %s comes after %s", rec.ID, last)
				}
				last = rec.ID
			}
			if err := f(p.all); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// every calls f with all records, in whatever order takes the least time, some at a time, until f
// returns an error, which it returns as it is. It reads ahead.
func every(ctx context.Context, from scep.Lister, f func([]*scep.Record) error) error {
	s, ok := from.(scep.Scanner)
	if !ok {
		return Each(ctx, from, scep.Query{}, f)
	}
	ctx, cancel := context.WithCancel(ctx)
	pages := make(chan []*scep.Record, 2)
	var failed error // once pages is closed
	go func() {
		defer close(pages)
		failed = s.Scan(ctx, func(all []*scep.Record, _ float64) error {
			select {
			case pages <- all:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	defer func() {
		cancel()
		for range pages { // until Scan has ended
		}
	}()
	for all := range pages {
		if err := f(all); err != nil {
			return err
		}
	}
	if failed != nil {
		return fmt.Errorf("transfer: reading: %w", failed)
	}
	return nil
}

// divide returns, for IDs above end, where one segment ends and the next begins. IDs are hashes: so
// many that are above begin, and not above end, tell how many there are.
func divide(begin, end scep.ID, n int) (bounds []scep.ID) {
	const digits, all = 6, 1 << 24
	number := func(id scep.ID) int {
		n, _ := strconv.ParseUint(string(id[:min(digits, len(id))]), 16, 32)
		return int(n)
	}
	step := (number(end) - number(begin)) * segment / n
	if step <= 0 { // more than ever was, or no hashes
		return nil
	}
	step = max(step, all>>16)
	for at := number(end) + step; at < all; at += step {
		bounds = append(bounds, scep.ID(fmt.Sprintf("%0*x", digits, at)+strings.Repeat("0", 64-digits)))
	}
	return bounds
}

// pageOf is a page, or why there is none.
type pageOf struct {
	all []*scep.Record
	err error
}

// read reads the records that q selects up to end, if that is not empty, and closes pages.
func read(ctx context.Context, from scep.Lister, q scep.Query, end scep.ID, pages chan<- pageOf) {
	defer close(pages)
	for {
		all, err := from.List(ctx, q)
		if err != nil {
			err = fmt.Errorf("transfer: listing: %w", err)
		}
		more := err == nil && len(all) > 0
		if more {
			if next := all[len(all)-1].ID; next <= q.After {
				err, more = fmt.Errorf("transfer: listing: record %s comes after %s", next, q.After), false
			} else {
				q.After = next
			}
		}
		if end != "" {
			for len(all) > 0 && all[len(all)-1].ID > end {
				all, more = all[:len(all)-1], false
			}
		}
		if len(all) > 0 || err != nil {
			select {
			case pages <- pageOf{all, err}:
			case <-ctx.Done():
				return
			}
		}
		if !more {
			return
		}
	}
}
