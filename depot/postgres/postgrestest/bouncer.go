package postgrestest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Bouncer is a PgBouncer in front of a server, with a folder of its own.
type Bouncer struct {
	server, dir, program string
	run                  *run
}

// Bouncer starts a PgBouncer with a pool_mode, "session" or "transaction", and perhaps more lines
// for its configuration. It ends with the test.
func (s *Server) Bouncer(t testing.TB, mode string, lines ...string) *Bouncer {
	t.Helper()
	program, err := exec.LookPath("pgbouncer")
	if err != nil {
		program = "/usr/sbin/pgbouncer" // which is not in everybody's path
		if _, err := os.Stat(program); err != nil {
			missing(t, "PgBouncer", "pgbouncer")
		}
	}
	b := &Bouncer{server: s.dir, dir: folder(t), program: program}
	t.Cleanup(func() {
		b.Kill(t)
		os.RemoveAll(b.dir)
		if t.Failed() && b.run != nil {
			t.Logf("log of PgBouncer:\n%s", b.run.log.Bytes())
		}
	})
	config := append([]string{
		"[databases]",
		fmt.Sprintf("* = host=%s port=%d", s.dir, port),
		"[pgbouncer]",
		"unix_socket_dir = " + b.dir,
		fmt.Sprintf("listen_port = %d", port),
		"pool_mode = " + mode,
		"auth_type = trust",
		"auth_file = " + filepath.Join(b.dir, "users"),
		"max_client_conn = 500",
		"default_pool_size = 100",
		"server_login_retry = 1",
		"log_connections = 0",
		"log_disconnections = 0",
	}, lines...)
	write(t, filepath.Join(b.dir, "users"), `"postgres" ""`+"\n")
	write(t, b.config(), strings.Join(config, "\n")+"\n")
	b.Start(t)
	return b
}

// config returns the name of its configuration file.
func (b *Bouncer) config() string { return filepath.Join(b.dir, "pgbouncer.ini") }

// URL returns the URL of a database, as of [Server.Database], through PgBouncer.
func (b *Bouncer) URL(database string) string { return strings.Replace(database, b.server, b.dir, 1) }

// Start starts a PgBouncer that was killed, and waits until it can be used.
func (b *Bouncer) Start(t testing.TB) {
	t.Helper()
	os.Remove(socket(b.dir)) // which one that was killed leaves, and the next does not replace
	b.run = launch(t, exec.Command(b.program, b.config()))
	b.run.await(t, fmt.Sprintf("postgres://postgres@/postgres?host=%s&port=%d&sslmode=disable", b.dir, port), func() bool { return true })
}

// Kill kills it, as kill -9 does, and waits for its end. A second time it does nothing.
func (b *Bouncer) Kill(testing.TB) {
	if b.run == nil {
		return
	}
	select {
	case <-b.run.done:
	default:
		signal(syscall.SIGKILL, b.run.cmd.Process.Pid)
		<-b.run.done
	}
}
