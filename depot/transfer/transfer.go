// Package transfer moves records from one depot to another: through a file, or from the folder
// of a micromdm/scep server.
//
// A file has JSON lines: a header with the version of the format, one line for each record, and
// a last line with their number, so that a file that was cut off is recognised. Times are
// RFC 3339 in UTC, bytes are base64, serial numbers hexadecimal; text that is not UTF-8 is an
// object with its bytes. Of a record's fields only Version is not carried over: it counts
// the writes to one depot.
//
// A file tells as much as the depot: who can read it can try guesses at a weak challenge
// password (see [scep.ID]). One-time challenges are not in it, as depots do not list them;
// those that have been handed out and not used are to be made again.
package transfer

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/scepkit/scepkit/scep"
)

const (
	format  = "scepkit records"
	version = 1
)

// header is the first line.
type header struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

// footer is the last line.
type footer struct {
	End int `json:"end"` // how many records there are
}

// Export writes all records of from to w. What is there all the time is in the file once, as it was
// at some moment meanwhile; what is made or deleted meanwhile may be in it or not: for all, stop the
// server. If from is a [scep.Scanner], records are in the order in which it keeps them, so that it
// is read but once from beginning to end; otherwise they are in the order of their IDs. progress, if
// not nil, is called now and then with how many have been written.
func Export(ctx context.Context, from scep.Lister, w io.Writer, progress func(n int)) error {
	buf := bufio.NewWriterSize(w, 1<<16)
	enc := json.NewEncoder(buf)
	if err := enc.Encode(header{format, version}); err != nil {
		return fmt.Errorf("transfer: writing: %w", err)
	}
	n := 0
	err := every(ctx, from, func(all []*scep.Record) error {
		for _, rec := range all {
			l, err := toLine(rec)
			if err != nil {
				return fmt.Errorf("transfer: record %s: %w", rec.ID, err)
			}
			if err := enc.Encode(l); err != nil {
				return fmt.Errorf("transfer: writing record %s: %w", rec.ID, err)
			}
			n++
		}
		if progress != nil {
			progress(n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = enc.Encode(footer{n})
	if err == nil {
		err = buf.Flush()
	}
	if err != nil {
		return fmt.Errorf("transfer: writing: %w", err)
	}
	return nil
}

// Import creates the records that [Export] wrote in a depot, and returns how many it created
// and how many it skipped since they were there already. So it can be called again after it was
// interrupted. A record that is there and is another, or whose serial number another has, is an
// error that names it and wraps [scep.ErrExists], and ends the import. progress, if not nil, is
// called now and then with how many lines are done, created or skipped.
//
// Records are created many at once: if the depot is a [scep.Loader], 64 with each call, or none of
// them; otherwise by as many calls beside each other, as depots let writers share commits. n counts
// what the depot has answered for. Records created before an error stay.
func Import(ctx context.Context, r io.Reader, to scep.Depot, progress func(n int)) (n, skipped int, err error) {
	in := newLines(r)
	if err := readHeader(in); err != nil {
		return 0, 0, fmt.Errorf("transfer: line 1: %w", err)
	}
	read, ended := 0, false
	next := func() (*scep.Record, error) {
		data, err := in.next()
		if err == io.EOF && !ended {
			return nil, fmt.Errorf("transfer: the file ends after %d records, before its end; it was cut off", read)
		}
		if err != nil {
			return nil, err
		}
		if ended {
			return nil, fmt.Errorf("transfer: line %d: comes after the last one", in.n)
		}
		rec, end, err := fromLine(data)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, fmt.Errorf("transfer: line %d is not whole: the file was cut off there: %w", in.n, err)
		}
		if err != nil {
			return nil, fmt.Errorf("transfer: line %d: %w", in.n, err)
		}
		if rec == nil {
			if ended = true; end != read {
				return nil, fmt.Errorf("transfer: line %d: there should be %d records, and there are %d", in.n, end, read)
			}
			for {
				data, err := in.next()
				if err != nil {
					return nil, err
				}
				if len(bytes.TrimSpace(data)) > 0 {
					return nil, fmt.Errorf("transfer: line %d: %.20q comes after the last one", in.n, data)
				}
			}
		}
		read++
		return rec, nil
	}
	t := tally{progress: progress}
	one := func(ctx context.Context, rec *scep.Record) error {
		created, err := put(ctx, to, rec)
		if err != nil {
			return err
		}
		t.count(created)
		return nil
	}
	if l, ok := to.(scep.Loader); ok {
		err = parallel(ctx, loads, together(next, load), func(ctx context.Context, recs []*scep.Record) error {
			return loadOr(ctx, l, recs, one, &t)
		})
	} else {
		err = parallel(ctx, width, next, one)
	}
	return t.end(err)
}

func readHeader(in *lines) error {
	data, err := in.next()
	if err != nil && err != io.EOF {
		return err
	}
	var h header
	if json.Unmarshal(data, &h) != nil || h.Format != format || h.Version < 1 {
		return errors.New("this is no file of scepkit records")
	}
	if h.Version > version {
		return fmt.Errorf("the file has version %d, and this program knows %d; use a newer version of it", h.Version, version)
	}
	return nil
}

// loadOr loads records, or if some cannot be created, has one see to each.
func loadOr(ctx context.Context, to scep.Loader, recs []*scep.Record, one func(context.Context, *scep.Record) error, t *tally) error {
	err := to.Load(ctx, recs)
	switch {
	case err == nil:
		for range recs {
			t.count(true)
		}
		return nil
	case !errors.Is(err, scep.ErrExists):
		return fmt.Errorf("transfer: creating %d records, the first of them %s: %w", len(recs), recs[0].ID, err)
	}
	for _, rec := range recs {
		if err := one(ctx, rec); err != nil {
			return err
		}
	}
	return nil
}

// put creates rec and reports true, or false if it is there already.
func put(ctx context.Context, to scep.Depot, rec *scep.Record) (bool, error) {
	rec.Version = 0
	err := to.Create(ctx, rec)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, scep.ErrExists) {
		return false, fmt.Errorf("transfer: creating record %s: %w", rec.ID, err)
	}
	there, err := to.Get(ctx, rec.ID)
	if errors.Is(err, scep.ErrNotFound) {
		return false, serialTaken(ctx, to, rec)
	}
	if err != nil {
		return false, fmt.Errorf("transfer: reading record %s: %w", rec.ID, err)
	}
	field, err := difference(there, rec)
	if err != nil {
		return false, fmt.Errorf("transfer: record %s: %w", rec.ID, err)
	}
	if field != "" {
		return false, fmt.Errorf("transfer: record %s is there already, with another %s: %w", rec.ID, field, scep.ErrExists)
	}
	return false, nil
}

// serialTaken names the record that has the serial number of rec.
func serialTaken(ctx context.Context, to scep.Depot, rec *scep.Record) error {
	other, err := to.GetSerial(ctx, rec.Issuer, rec.Serial)
	if err != nil {
		return fmt.Errorf("transfer: creating record %s: %w", rec.ID, errors.Join(scep.ErrExists, err))
	}
	return fmt.Errorf("transfer: record %s has serial number %x, as record %s has: %w", rec.ID, rec.Serial, other.ID, scep.ErrExists)
}
