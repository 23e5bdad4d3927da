package postgrestest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// An Option changes how a server is started.
type Option func(*Server)

// Durable has the server write to the disk what it has committed, which takes time. Without it
// everything survives the end of the server, and nothing is sure to survive that of the machine.
func Durable(s *Server) { s.settings = append(s.settings, "fsync=on", "full_page_writes=on") }

// Setting sets one of the server's parameters.
func Setting(name, value string) Option {
	return func(s *Server) { s.settings = append(s.settings, name+"="+value) }
}

// Keep has the server keep its files in a folder, and leave them there in the end. It goes on with
// what it finds there. The folder is made if need be; its path is short, as that of a socket is. A
// test that finds another server running there fails.
func Keep(dir string) Option {
	return func(s *Server) { s.dir, s.keep = dir, true }
}

// Server is one PostgreSQL server with a folder of its own.
type Server struct {
	bin, dir    string
	keep        bool
	settings    []string
	synchronous bool

	mu        sync.Mutex
	run       *run
	databases atomic.Int64
}

// run is one life of a server, or of a PgBouncer.
type run struct {
	cmd  *exec.Cmd
	log  bytes.Buffer  // complete once done is closed
	done chan struct{} // closed when it has ended
}

// Start starts a server that ends with the test.
func Start(t testing.TB, options ...Option) *Server {
	t.Helper()
	s := start(t, options...)
	s.endWith(t)
	return s
}

func start(t testing.TB, options ...Option) *Server {
	t.Helper()
	s := empty(t, options)
	if _, err := os.Stat(filepath.Join(s.dir, "data")); err != nil {
		cluster(t, s.bin, s.dir)
	}
	s.Start(t)
	return s
}

// empty returns a server without data.
func empty(t testing.TB, options []Option) *Server {
	t.Helper()
	s := &Server{bin: bin(t), settings: []string{
		"listen_addresses=", "fsync=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=200",
		"max_wal_senders=0", "wal_level=minimal", "log_min_messages=warning", "log_min_error_statement=panic",
	}}
	for _, o := range options {
		o(s)
	}
	if !s.keep {
		s.dir = folder(t)
	} else if err := os.MkdirAll(s.dir, 0o700); err != nil {
		t.Fatalf("postgrestest: %v", err)
	} else if err := own(s.dir); err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
	return s
}

// endWith has the server end with the test.
func (s *Server) endWith(t testing.TB) {
	t.Cleanup(func() {
		s.end()
		if t.Failed() && s.run != nil {
			t.Logf("log of PostgreSQL in %s:\n%s", s.dir, s.run.log.Bytes())
		}
	})
}

// Start starts a server that was stopped or killed, and waits until it can be used.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.Launch(t)
	s.run.await(t, s.URL("postgres"), s.isOurs)
}

// await waits until a database can be connected to, and whoever serves it is the right one.
func (r *run) await(t testing.TB, url string, right func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		c, err := pgx.Connect(ctx, url)
		if err == nil {
			c.Close(ctx)
			if right() {
				return
			}
		}
		select {
		case <-r.done:
			t.Fatalf("postgrestest: %s ended:\n%s", r.cmd.Path, r.log.Bytes())
		case <-ctx.Done():
			signal(syscall.SIGKILL, family(r.cmd.Process.Pid)...)
			<-r.done
			t.Fatalf("postgrestest: %s does not start: %v\n%s", r.cmd.Path, err, r.log.Bytes())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// isOurs reports that who answers is this server, and not one that another process has started in
// the folder that was to be kept.
func (s *Server) isOurs() bool {
	data, _ := os.ReadFile(filepath.Join(s.dir, "data", "postmaster.pid"))
	pid, _, _ := strings.Cut(string(data), "\n")
	return pid == fmt.Sprint(s.run.cmd.Process.Pid)
}

// Launch starts a server that was stopped or killed, and does not wait.
func (s *Server) Launch(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	args := []string{"-D", filepath.Join(s.dir, "data"), "-k", s.dir, "-p", fmt.Sprint(port)}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), args...)
	cmd.Dir = s.dir
	s.run = launch(t, cmd)
}

// launch starts a process that ends with the test binary.
func launch(t testing.TB, cmd *exec.Cmd) *run {
	t.Helper()
	r := &run{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &r.log, &r.log
	unprivileged(cmd)
	started := make(chan error)
	go supervise(func() {
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(r.done)
		}
	})
	if err := <-started; err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
	return r
}

// Stop stops the server in order, as for maintenance: connections are closed, and everything is
// on the disk. It waits for the end.
func (s *Server) Stop(t testing.TB) { s.halt(t, syscall.SIGINT) }

// Kill kills all processes of the server at once, as kill -9 does, and waits for their end.
func (s *Server) Kill(t testing.TB) { s.halt(t, syscall.SIGKILL) }

func (s *Server) halt(t testing.TB, sig syscall.Signal) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stop(sig); err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
}

// stop ends the server. A second time it does nothing.
func (s *Server) stop(sig syscall.Signal) error {
	all := family(s.run.cmd.Process.Pid)
	if sig == syscall.SIGKILL {
		signal(sigStop, all...) // or the first to see another die would start a new one
		all = family(s.run.cmd.Process.Pid)
		signal(sig, all...)
	} else {
		signal(sigContinue, all...)
		signal(sig, s.run.cmd.Process.Pid)
	}
	select {
	case <-s.run.done:
		for _, pid := range all { // the children of a server that was killed are not its own to wait for
			for alive(pid) {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("PostgreSQL does not end")
	}
}

// Pause has the server hang: it keeps its connections, takes new ones and answers nothing.
func (s *Server) Pause(t testing.TB) {
	signal(sigStop, family(s.run.cmd.Process.Pid)...)
	t.Cleanup(func() { s.Resume(t) })
}

// Resume ends Pause.
func (s *Server) Resume(testing.TB) {
	select {
	case <-s.run.done:
	default:
		signal(sigContinue, family(s.run.cmd.Process.Pid)...)
	}
}

// end stops the server and deletes its files.
func (s *Server) end() {
	if s.run != nil {
		select {
		case <-s.run.done:
		default:
			sig := syscall.SIGKILL
			if s.keep {
				sig = syscall.SIGINT
			}
			s.stop(sig)
		}
	}
	if !s.keep {
		os.RemoveAll(s.dir)
	}
}

// URL returns where a database of the server is, for its superuser.
func (s *Server) URL(database string) string { return URL(database, s) }

// Dir returns the folder of the server's socket, which a URL can have for a host.
func (s *Server) Dir() string { return s.dir }

// Database makes an empty database that is gone after the test, and returns its URL.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	s.Exec(t, "postgres", `CREATE DATABASE `+name+` TEMPLATE template0`)
	t.Cleanup(func() {
		select {
		case <-s.run.done: // the test left it dead
		default:
			s.Exec(t, "postgres", `DROP DATABASE `+name+` WITH (FORCE)`)
		}
	})
	return s.URL(name)
}

// Exec runs statements as superuser in a database, in one session.
func (s *Server) Exec(t testing.TB, database string, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := pgx.Connect(ctx, s.URL(database))
	if err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
	defer c.Close(ctx)
	for _, statement := range statements {
		if _, err := c.PgConn().Exec(ctx, statement).ReadAll(); err != nil {
			t.Fatalf("postgrestest: %s: %v", statement, err)
		}
	}
}
