package postgrestest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Primary has the server be one that others can follow, see [Server.Standby].
func Primary(s *Server) {
	s.settings = append(s.settings, "wal_level=replica", "max_wal_senders=8", "wal_keep_size=256MB", "wal_retrieve_retry_interval=100ms")
}

// Synchronous has the server that a standby follows wait for it: nothing is committed there that
// is not on the standby, too. If the standby is away, commits wait.
func Synchronous(s *Server) { s.synchronous = true }

// Standby starts a standby of the server, which was started as [Primary]: it follows it by
// streaming replication, can be read, and ends with the test. When Standby returns it streams. A
// server that is promoted waits for no standby, unless it is given one.
func (s *Server) Standby(t testing.TB, options ...Option) *Server {
	t.Helper()
	standby := empty(t, append([]Option{Primary}, options...))
	standby.endWith(t)
	command(t, filepath.Join(s.bin, "pg_basebackup"), "--pgdata="+filepath.Join(standby.dir, "data"),
		"--host="+s.dir, fmt.Sprintf("--port=%d", port), "--username=postgres", "--checkpoint=fast", "--no-sync")
	// The copy has whom the server waits for itself.
	configured := filepath.Join(standby.dir, "data", "postgresql.auto.conf")
	if err := os.Truncate(configured, 0); err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
	standby.Follow(t, s)
	return standby
}

// Follow starts a server, which was stopped, as a standby of another, and waits until it streams.
// What it has must be in the past of the other: that of one that was stopped in order, and of
// which a standby was then promoted, is.
func (s *Server) Follow(t testing.TB, primary *Server) {
	t.Helper()
	write(t, filepath.Join(s.dir, "data", "standby.signal"), "")
	name := filepath.Base(s.dir)
	Setting("primary_conninfo", fmt.Sprintf("host=%s port=%d user=postgres application_name=%s", primary.dir, port, name))(s)
	s.Start(t)
	if s.synchronous {
		primary.Exec(t, "postgres", `SET synchronous_commit = local`, `ALTER SYSTEM SET synchronous_standby_names = '`+name+`'`, `SELECT pg_reload_conf()`)
	}
	primary.await(t, fmt.Sprintf(`SELECT EXISTS (SELECT 1 FROM pg_stat_replication
		WHERE application_name = '%s' AND state = 'streaming' AND (sync_state = 'sync') = %t)`, name, s.synchronous))
}

// Promote has a standby become a primary, and returns when it can be written to. The server that
// it followed is not told.
func (s *Server) Promote(t testing.TB) {
	t.Helper()
	// Not by pg_promote: the session that waits can be in the way of what it waits for.
	command(t, filepath.Join(s.bin, "pg_ctl"), "--pgdata="+filepath.Join(s.dir, "data"), "promote", "--no-wait")
	s.await(t, `SELECT NOT pg_is_in_recovery()`)
}

// await waits until a query says true.
func (s *Server) await(t testing.TB, query string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
	defer c.Close(ctx)
	for {
		var met bool
		if err := c.QueryRow(ctx, query).Scan(&met); err != nil {
			t.Fatalf("postgrestest: %s: %v", query, err)
		}
		if met {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
