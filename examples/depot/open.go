package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// A database is what both kinds of depot are.
type database interface {
	scep.Depot
	scep.Lister
	scep.RevocationLister
	scep.Pruner
	io.Closer
}

const (
	dbUsage = "`DB`: a file, a postgres:// URL, or env:NAME for either in an environment variable"

	// patience is how long one statement may take; a person is waiting, not a device.
	patience = time.Minute

	// countingPatience is the same for one that counts millions of records.
	countingPatience = time.Hour
)

// open opens the database that a flag names; with create, also a file that is not there. What it
// was given may have a password in it, and is in no error unless it is the name of a file.
func open(ctx context.Context, where string, create bool, timeout time.Duration) (database, error) {
	if name, ok := strings.CutPrefix(where, "env:"); ok {
		if where = os.Getenv(name); where == "" {
			return nil, fmt.Errorf("the environment variable %s, which is to name the database, is empty", name)
		}
	}
	scheme, _, ok := strings.Cut(where, "://")
	switch {
	case ok && (scheme == "postgres" || scheme == "postgresql"):
		return postgres.Open(ctx, postgres.Config{URL: where, Timeout: timeout})
	case ok, strings.Contains(where, "password="):
		return nil, errors.New("a database is a file, or a URL that begins with postgres://")
	}
	if !create {
		if _, err := os.Stat(where); err != nil {
			return nil, err
		}
	}
	return sqlite.Open(where)
}
