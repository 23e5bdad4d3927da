package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/scepkit/scepkit/backend/file"
)

// A report is how it came out.
type report struct {
	replicas, clients int
	took              time.Duration
	inTime            int64

	enrolled, renewed, repeated                int64
	polls, again, unavailable, movedOn, nobody int64
	killed, databaseKilled                     int
	slowest, longest                           time.Duration

	fell []string // what ended by itself
	lost *losses

	// What a certificate costs; zero if things were killed.
	replicaCPU, databaseCPU time.Duration
	rsa                     time.Duration // what an RSA-2048 operation costs meanwhile
	wal, perRecord          int64
}

// newReport is for a cluster that has been stopped.
func newReport(c *cluster, f *fleet, lost *losses) *report {
	r := &report{
		replicas: c.o.replicas, clients: c.o.clients, took: f.took, inTime: f.inTime, lost: lost,
		enrolled: f.enrolled.Load(), renewed: f.renewed.Load(), repeated: f.repeated.Load(),
		polls: f.polls.Load(), again: f.again.Load(), unavailable: f.unavailable.Load(),
		movedOn: c.proxy.movedOn.Load(), nobody: c.proxy.nobody.Load(),
		slowest: time.Duration(f.slowest.Load()), longest: time.Duration(f.longest.Load()),
	}
	r.killed, r.databaseKilled = c.kills()
	for _, v := range c.children() {
		if v.fell > 0 {
			r.fell = append(r.fell, fmt.Sprintf("%s, %d times, last with %v", v.name, v.fell, v.ended))
		}
	}
	if n := r.enrolled + r.renewed; c.o.killEvery == 0 && c.server != nil && n > 0 {
		for _, v := range c.replicas {
			r.replicaCPU += v.cpu / time.Duration(n)
		}
		r.databaseCPU = c.server.child.cpu / time.Duration(n)
		if _, ended := c.probe.state(); ended == errEnded {
			r.rsa = c.probe.cpu / probes
		}
		r.wal = (c.after.wal - c.before.wal) / n
		r.perRecord = c.after.size / max(c.after.records, 1)
	}
	return r
}

// kills returns how often replicas and the database were killed.
func (c *cluster) kills() (replicas, database int) {
	for _, v := range c.children() {
		v.mu.Lock()
		if c.server != nil && v == c.server.child {
			database += v.kills
		} else {
			replicas += v.kills
		}
		v.mu.Unlock()
	}
	return replicas, database
}

// status is the exit status: 1 if anything was lost.
func (r *report) status() int {
	for _, l := range r.losses() {
		if len(l.cases) > 0 {
			return 1
		}
	}
	return 0
}

type loss struct {
	name  string
	cases []string
}

func (r *report) losses() []loss {
	return []loss{
		{"certificates delivered, not in the depot", r.lost.missing},
		{"requests with two serial numbers", r.lost.twice},
		{"records stuck in signing", r.lost.signing},
		{"challenges spent without a record", r.lost.orphans},
		{"good requests refused", r.lost.refused},
		{"requests without an answer", r.lost.unanswered},
		{"processes that ended by themselves", r.fell},
	}
}

// print writes the report for people.
func (r *report) print(out io.Writer) {
	line := func(name string, value any, remark string) {
		if remark != "" {
			remark = "  " + remark
		}
		fmt.Fprintf(out, "  %-40s %10v%s\n", name, value, remark)
	}
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
	fmt.Fprintf(out, "\n%d replicas, %d devices, %v:\n\n", r.replicas, r.clients, r.took.Round(time.Second))
	line("enrolments", r.enrolled, "")
	line("renewals", r.renewed, "")
	line("certificates per second", fmt.Sprintf("%.1f", float64(r.inTime)/r.took.Seconds()), "")
	line("asked for once more, and got again", r.repeated, "")
	line("polls", r.polls, "")
	line("requests sent again by devices", r.again, "no answer, or 503")
	line("answers with 503", r.unavailable, "")
	line("requests that went on to a next replica", r.movedOn, "")
	line("requests for which no replica was there", r.nobody, "")
	line("replicas killed", r.killed, "")
	line("database killed", r.databaseKilled, "")
	line("slowest answer", seconds(r.slowest), "one HTTP request")
	line("longest wait for a certificate", seconds(r.longest), "from the first request on")
	if r.replicaCPU > 0 {
		ms := func(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }
		fmt.Fprint(out, "\nCosts of a certificate:\n\n")
		line("processor time of the replicas", ms(r.replicaCPU), "")
		line("processor time of the database", ms(r.databaseCPU), "")
		if r.rsa > 0 {
			line("of an RSA-2048 signature meanwhile", ms(r.rsa), "busy machines take more for everything")
		}
		line("write-ahead log", fmt.Sprint(r.wal, " B"), "")
		line("room in the database", fmt.Sprint(r.perRecord, " B"), "with indexes")
	}
	fmt.Fprint(out, "\nLost:\n\n")
	for _, l := range r.losses() {
		line(l.name, len(l.cases), "")
	}
	fmt.Fprintln(out)
	if r.status() == 0 {
		fmt.Fprintln(out, "Nothing was lost.")
		return
	}
	fmt.Fprintln(out, "SOMETHING WAS LOST:")
	for _, l := range r.losses() {
		for i, text := range l.cases {
			if i == 10 {
				fmt.Fprintf(out, "  and %d more\n", len(l.cases)-i)
				break
			}
			fmt.Fprintf(out, "  %s: %s\n", l.name, text)
		}
	}
}

// probes is how many signatures a probe makes.
const probes = 500

// probe signs with the RA's key, as a process of its own, so that its processor time is known.
func probe(dir string) error {
	ca, err := file.Open(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
	if err != nil {
		return err
	}
	ra, _, err := file.RA(context.Background(), ca, dir, file.RAOptions{})
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte("probe"))
	for range probes {
		if _, err := ra.Key.Sign(rand.Reader, sum[:], crypto.SHA256); err != nil {
			return err
		}
	}
	return nil
}
