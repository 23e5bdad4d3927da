package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
)

// A server is a PostgreSQL of the program's own: durable, in a folder, and reached through a
// socket there and nowhere else.
type server struct {
	bin, dir string
	child    *child
}

// debian is where Debian has PostgreSQL's programs, of each version.
const debian = "/usr/lib/postgresql/*/bin/postgres"

// programs returns the folder that has PostgreSQL's programs: the newest version that matches the
// pattern, else what is in the path.
func programs(pattern string) (string, error) {
	found, _ := filepath.Glob(pattern)
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		found = append(found, path)
	}
	for _, path := range found {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), "initdb")); err == nil {
			return filepath.Dir(path), nil
		}
	}
	return "", errors.New("PostgreSQL is not installed: on Debian, apt-get install postgresql; or give -database URL")
}

// maxSocket is the longest path of a socket that all systems take.
const maxSocket = 103

// socketIn returns the path of the socket of a PostgreSQL in a folder.
func socketIn(dir string) string { return filepath.Join(dir, ".s.PGSQL.5432") }

// atWork reports whether one listens there.
func atWork(dir string) bool {
	conn, err := net.Dial("unix", socketIn(dir))
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// newServer makes a database in the folder, unless there is one, for so many connections, and does
// not start it.
func newServer(ctx context.Context, dir string, connections int, log io.Writer) (*server, error) {
	if slayOrder == "" {
		return nil, own(dir)
	}
	bin, err := programs(debian)
	if err != nil {
		return nil, err
	}
	s := &server{bin: bin, dir: dir}
	if socket := socketIn(dir); len(socket) > maxSocket {
		return nil, fmt.Errorf("%s is too long for the path of a socket; give a shorter -data", socket)
	}
	if atWork(dir) {
		return nil, fmt.Errorf("a PostgreSQL is at work in %s: the same -data is in use; wait for its end, or give another", dir)
	}
	if err := own(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); errors.Is(err, fs.ErrNotExist) {
		initdb := &child{name: "initdb", log: log, args: []string{"keeper", filepath.Join(bin, "initdb"), "--pgdata=" + data,
			"--username=scep", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"}}
		if err := initdb.start(); err != nil {
			return nil, err
		}
		if err := initdb.wait(ctx); err != nil {
			return nil, err
		}
		if _, ended := initdb.state(); ended != errEnded {
			return nil, fmt.Errorf("initdb made no database: %v", ended)
		}
	}
	s.child = &child{
		name: "database", log: log, kill: func(_ *exec.Cmd, stdin io.Writer) error {
			_, err := io.WriteString(stdin, slayOrder)
			return err
		},
		args: []string{"keeper", filepath.Join(bin, "postgres"), "-D", data, "-k", dir,
			"-c", "listen_addresses=", "-c", "unix_socket_permissions=0700", "-c", "fsync=on", "-c", "full_page_writes=on",
			"-c", "synchronous_commit=on", "-c", "shared_buffers=64MB", "-c", fmt.Sprint("max_connections=", connections), "-c", "log_min_messages=warning"},
	}
	return s, nil
}

// url is for this user only, who may read the folder.
func (s *server) url() string {
	return "postgres://scep@/postgres?sslmode=disable&host=" + url.QueryEscape(s.dir)
}

// A usage is what a database has used up to now.
type usage struct {
	wal     int64 // bytes of write-ahead log
	size    int64 // bytes of the table of records, with its indexes
	records int64
}

// read asks the database for its usage.
func (u *usage) read(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	return c.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, pg_total_relation_size('`+schema+`.record'),
		(SELECT count(*) FROM `+schema+`.record)`).Scan(&u.wal, &u.size, &u.records)
}
