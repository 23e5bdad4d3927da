// Package sqlite keeps requests and certificates in one SQLite file: the depot to use on
// one machine, for up to some ten million certificates. Nothing need be installed; the
// driver is pure Go.
//
//	db, err := sqlite.Open("/var/lib/scep/scep.db")
//
// What a write has answered is on the disk. Writers that come together share one commit,
// so that many together cost little more than one. A record and the one-time challenge that it
// spends are in one commit in any case: both are there after a crash, or neither. Any number of
// processes on one machine may have the file open; it must not be on a network file system.
//
// Beside the file there are two more while it is open, ending in -wal and -shm. Copy the
// file with "sqlite3 scep.db '.backup copy.db'" or "VACUUM INTO", not with cp. Before a copy
// takes its place, end all processes and remove those two: what a killed process left in them
// would be written into the copy. The tables can be read with the sqlite3 shell; the view
// certificates shows them in clear text:
//
//	SELECT subject, serial, not_after FROM certificates WHERE state = 'issued';
//
// Open checks the structure of a file that is below 64 MiB, and of one below 1 GiB that was
// not closed properly. Check a larger one with "PRAGMA quick_check".
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/scepkit/scepkit/scep"
)

var (
	_ scep.Depot            = (*DB)(nil)
	_ scep.Lister           = (*DB)(nil)
	_ scep.RevocationLister = (*DB)(nil)
	_ scep.Pruner           = (*DB)(nil)
	_ scep.Scanner          = (*DB)(nil)
	_ scep.ChallengeStore   = (*DB)(nil)
	_ scep.Spender          = (*DB)(nil)
)

const (
	// lockWait is how long another process may hold the file before writers are told. Devices
	// get an answer while it hangs, and come again.
	lockWait = 1500 * time.Millisecond

	// openWait is the same for Open.
	openWait = 5 * time.Second
)

// DB is a [scep.Depot], a [scep.Lister], a [scep.RevocationLister], a [scep.Pruner], a
// [scep.Scanner], a [scep.ChallengeStore] and a [scep.Spender] over one file. A write whose context
// ends while it waits for its turn does not happen; one whose context ends later may or may not
// have happened, and its error says so.
type DB struct {
	path  string
	files [3]openedFile // that, and those beside it ending in -wal and -shm

	writer  *writer // the committer's until that has ended
	queue   chan *write
	readers chan *reader // as many as may read at once; nil for one not opened yet

	closing  chan struct{} // closed when Close begins
	finished chan struct{} // closed when the committer has ended
	close    sync.Once
	closeErr error
}

// openedFile is a name and what it stood for when it was opened.
type openedFile struct {
	path   string
	opened fs.FileInfo
}

// Open opens the file, or makes it, readable and writable only by this user. Its directory
// must exist. A file of another application, of a later version of this package, or one that
// is damaged or cannot be written is an error. The caller closes the DB.
func Open(path string) (*DB, error) {
	full, err := locate(path)
	if err != nil {
		return nil, err
	}
	wal, _ := os.Stat(full + "-wal")
	leftBehind := wal != nil && wal.Size() > 0

	c, err := connect(full, openWait)
	if err != nil {
		return nil, explain(full, err)
	}
	w, err := prepareFile(full, c, leftBehind)
	if err != nil {
		c.close()
		return nil, explain(full, err)
	}
	db := &DB{
		path:     full,
		writer:   w,
		queue:    make(chan *write, maxBatch),
		readers:  make(chan *reader, maxReaders),
		closing:  make(chan struct{}),
		finished: make(chan struct{}),
	}
	for i, name := range []string{full, full + "-wal", full + "-shm"} {
		info, err := os.Stat(name)
		if err != nil {
			c.close()
			return nil, fmt.Errorf("sqlite: %s: disappeared while it was being opened: %w", full, err)
		}
		db.files[i] = openedFile{name, info}
	}
	for range maxReaders {
		db.readers <- nil
	}
	go db.commitAll()
	return db, nil
}

// Close waits for the commit under way, refuses the writes that are waiting, and closes the
// file. Whatever is called afterwards returns an error. Closing again does nothing.
func (db *DB) Close() error {
	db.close.Do(func() {
		close(db.closing)
		<-db.finished
		for range maxReaders {
			if r := <-db.readers; r != nil {
				r.close()
			}
		}
		// Of two connections that close at once, each may leave the -wal file to the other.
		if err := db.writer.close(); err != nil {
			db.closeErr = fmt.Errorf("sqlite: %s: closing: %w", db.path, err)
		}
	})
	return db.closeErr
}

// locate returns the file's full name. It makes an empty file if there is none.
func locate(path string) (string, error) {
	if path == "" {
		return "", errors.New("sqlite: path is empty; name a file")
	}
	if path == ":memory:" {
		return "", errors.New("sqlite: :memory: is not a file; use depot.Memory")
	}
	full, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("sqlite: %s: %w", path, err)
	}
	dir := filepath.Dir(full)
	switch info, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("sqlite: %s: directory does not exist; create it first", full)
	case err != nil:
		return "", fmt.Errorf("sqlite: %s: directory cannot be used: %w", full, err)
	case !info.IsDir():
		return "", fmt.Errorf("sqlite: %s: %s is not a directory", full, dir)
	}

	// An existing file is not opened here, not even to look at it: closing it would drop
	// the locks that other connections of this process have on it (fcntl(2), POSIX locks).
	switch info, err := os.Stat(full); {
	case errors.Is(err, fs.ErrNotExist):
		f, err := os.OpenFile(full, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("sqlite: %s: cannot be created; make the directory writable for this user: %w", full, err)
		}
		if err == nil {
			if err := f.Close(); err != nil {
				return "", fmt.Errorf("sqlite: %s: %w", full, err)
			}
		}
	case err != nil:
		return "", fmt.Errorf("sqlite: %s: %w", full, err)
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("sqlite: %s: not a regular file", full)
	}

	// The -wal file is beside the file itself, not beside a link to it.
	real, err := filepath.EvalSymlinks(full)
	if err != nil {
		return "", fmt.Errorf("sqlite: %s: %w", full, err)
	}
	return real, nil
}

// errClosed is what every method returns after Close.
func (db *DB) errClosed() error { return fmt.Errorf("sqlite: %s: is closed", db.path) }

// checkIDs reports that ctx has ended, or which ID is not one.
func checkIDs(ctx context.Context, ids ...scep.ID) error {
	for _, id := range ids {
		if !id.Valid() {
			return fmt.Errorf("sqlite: %.80q is not an ID; want 64 lower-case hexadecimal digits", string(id))
		}
	}
	return ctx.Err()
}
