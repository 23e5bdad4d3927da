package main

import (
	"cmp"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// Units are what one of each thing costs. How each was measured is in CAPACITY.md, and how to do
// it again.
type units struct {
	cpu      time.Duration // processor time of a replica for one request, that for the CA's certificate included
	cores    float64       // of a replica
	load     float64       // how busy its processors may be on average
	database time.Duration // processor time of PostgreSQL for one certificate

	writes  float64 // of the depot for one certificate: each is a commit
	commits float64 // that PostgreSQL can do in a second, one disk, many writers at once
	record  float64 // bytes of a record in PostgreSQL, with its indexes
	sqlite  float64 // the same in SQLite
	index   float64 // bytes of it that should be in memory
	wal     float64 // bytes of write-ahead log for a certificate, where pages are changed again and again
	walCold float64 // where each page that it changes is logged whole

	crlEntry float64       // bytes
	crlTime  time.Duration // to make one entry of a CRL
	ocsp     time.Duration // processor time of an answer that was signed before
	ocspNew  time.Duration // of one that is signed anew
}

func measured() units {
	return units{
		cpu: 3100 * time.Microsecond, cores: 2, load: 0.5, database: 1100 * time.Microsecond,
		writes: 3, commits: 2500, record: 4200, sqlite: 2900, index: 250, wal: 6200, walCold: 39000,
		crlEntry: 53, crlTime: 600 * time.Nanosecond, ocsp: 28 * time.Microsecond, ocspNew: 242 * time.Microsecond,
	}
}

// table is the names and values of units, for people.
func (u units) table() [][2]string {
	return [][2]string{
		{"processor time of a replica for a certificate", seconds(u.cpu.Seconds())},
		{"processors of a replica", number(u.cores)},
		{"how busy they may be on average", percent(u.load)},
		{"processor time of PostgreSQL for a certificate", seconds(u.database.Seconds())},
		{"writes for a renewal, each a commit", number(u.writes)},
		{"commits per second of one PostgreSQL", number(u.commits)},
		{"a record in PostgreSQL, with indexes", size(u.record)},
		{"a record in SQLite", size(u.sqlite)},
		{"of it in indexes, which belong in memory", size(u.index)},
		{"write-ahead log for a certificate, at least", size(u.wal)},
		{"write-ahead log for a certificate, at most", size(u.walCold)},
		{"an entry of a CRL", size(u.crlEntry)},
		{"time to make an entry", seconds(u.crlTime.Seconds())},
		{"OCSP answer that was signed before", seconds(u.ocsp.Seconds())},
		{"OCSP answer that is signed anew", seconds(u.ocspNew.Seconds())},
	}
}

// A plan is what there is to serve. Times are in days.
type plan struct {
	devices  float64
	validity float64 // of a certificate
	window   float64 // before its end in which a device renews, at a moment drawn at random
	keep     float64 // a record after its certificate has ended
	messages float64 // that a device sends for one certificate: 1, and what is sent again
	revoked  float64 // share of the devices whose certificate is revoked in a year
	asked    float64 // OCSP questions about a device in a day
	storm    float64 // hours in which all devices come, when something has brought them together
}

func usual(devices float64) plan {
	return plan{devices: devices, validity: 365, window: 365. / 3, keep: 90, messages: 1.1, revoked: 0.02, asked: 24, storm: 1}
}

const day = 86400. // seconds

// life is for how many days a certificate is in use: on average, a device renews in the middle
// of the window.
func (p plan) life() float64 { return p.validity - p.window/2 }

// steady is how many certificates there are in a second when devices are spread out evenly.
func (p plan) steady() float64 { return p.devices / p.life() / day }

// wave is the same when all devices were installed on one day, and renew for the first time.
func (p plan) wave() float64 { return p.devices / max(p.window, 1) / day }

// stormy is the same when all devices come within some hours.
func (p plan) stormy() float64 { return p.devices / (p.storm * 3600) }

// records is how many there are, once as many are pruned as are added.
func (p plan) records() float64 { return p.devices / p.life() * (p.validity + p.keep) }

// listed is how many certificates a CRL has: a certificate is revoked in the middle of its life,
// on average, and is listed until its end.
func (p plan) listed() float64 { return p.devices * p.revoked / 365 * (p.validity - p.life()/2) }

// cores is how many processors of replicas are at work.
func (u units) busyCores(p plan, rate float64) float64 { return rate * p.messages * u.cpu.Seconds() }

// replicas is how many it takes, one of which may be away.
func (u units) replicas(p plan, rate float64) float64 {
	return math.Ceil(u.busyCores(p, rate)/(u.cores*u.load)) + 1
}

// drain is how many hours it takes until so many replicas and their database have served all
// devices, if they do nothing else: as long as the slower of them needs.
func (u units) drain(p plan, replicas float64) float64 {
	return max(p.devices*p.messages*u.cpu.Seconds()/(replicas*u.cores), p.devices*u.writes/u.commits) / 3600
}

// shards is into how many CRLs of about 100 kB the certificates are divided.
func (u units) shards(p plan) float64 { return math.Ceil(p.listed() * u.crlEntry / 100e3) }

// revocations is how many there are in a day.
func (p plan) revocations() float64 { return p.devices * p.revoked / 365 }

// crlSignatures is how many signatures a process makes in a second whose CRLs are asked for all
// the time: one for each shard in an hour, and one for each revocation.
func (u units) crlSignatures(p plan) float64 { return u.shards(p)/3600 + p.revocations()/day }

// A row of a table: what it is, and what it is for a plan.
type row struct {
	name  string
	value func(u units, p plan) string
}

// rate returns the rows on how many certificates there are in a second.
func rateRows(rate func(plan) float64) []row {
	return []row{
		{"certificates per second", func(_ units, p plan) string { return number(rate(p)) }},
		{"processors at work in replicas", func(u units, p plan) string { return number(u.busyCores(p, rate(p))) }},
		{"replicas, one of them to spare", func(u units, p plan) string { return number(u.replicas(p, rate(p))) }},
		{"processors at work in PostgreSQL", func(u units, p plan) string { return number(rate(p) * u.database.Seconds()) }},
		{"commits per second", func(u units, p plan) string { return number(rate(p) * u.writes) }},
		{"share of the commits that one disk did here", func(u units, p plan) string { return percent(rate(p) * u.writes / u.commits) }},
		{"HSM operations per second, RA in a file", func(_ units, p plan) string { return number(rate(p)) }},
		{"HSM operations per second, RA in the HSM", func(_ units, p plan) string { return number(rate(p) + 2*rate(p)*p.messages) }},
	}
}

func steadyTable() []row {
	return append(rateRows(plan.steady), []row{
		{"records", func(_ units, p plan) string { return number(p.records()) }},
		{"room in PostgreSQL", func(u units, p plan) string { return size(p.records() * u.record) }},
		{"room in SQLite", func(u units, p plan) string { return size(p.records() * u.sqlite) }},
		{"memory to keep the indexes in", func(u units, p plan) string { return size(p.records() * u.index) }},
		{"write-ahead log per day, from", func(u units, p plan) string { return size(p.steady() * day * u.wal) }},
		{"write-ahead log per day, to", func(u units, p plan) string { return size(p.steady() * day * u.walCold) }},
		{"records to prune per day", func(_ units, p plan) string { return number(p.steady() * day) }},
		{"certificates in the CRL", func(_ units, p plan) string { return number(p.listed()) }},
		{"size of the CRL in one piece", func(u units, p plan) string { return size(p.listed() * u.crlEntry) }},
		{"time to make it", func(u units, p plan) string { return seconds(p.listed() * u.crlTime.Seconds()) }},
		{"shards of about 100 kB", func(u units, p plan) string { return number(u.shards(p)) }},
		{"revocations per day", func(_ units, p plan) string { return number(p.revocations()) }},
		{"CRL signatures per second, in each process that serves them", func(u units, p plan) string { return number(u.crlSignatures(p)) }},
		{"OCSP answers per second", func(_ units, p plan) string { return number(p.devices * p.asked / day) }},
		{"processors at work for OCSP, signed before", func(u units, p plan) string { return number(p.devices * p.asked / day * u.ocsp.Seconds()) }},
		{"processors at work for OCSP, signed anew", func(u units, p plan) string { return number(p.devices * p.asked / day * u.ocspNew.Seconds()) }},
	}...)
}

func waveTable() []row { return rateRows(plan.wave) }

func stormTable() []row {
	return append(rateRows(plan.stormy),
		row{"hours until replicas and database of the steady state are through", func(u units, p plan) string { return number(u.drain(p, u.replicas(p, p.steady()))) }})
}

// writeTable writes a table in Markdown with a column for each plan.
func writeTable(out io.Writer, u units, rows []row, plans ...plan) {
	head, rule := "| devices |", "|---|"
	for _, p := range plans {
		head += " " + number(p.devices) + " |"
		rule += "---:|"
	}
	fmt.Fprintf(out, "%s\n%s\n", head, rule)
	for _, r := range rows {
		fmt.Fprintf(out, "| %s |", r.name)
		for _, p := range plans {
			fmt.Fprintf(out, " %s |", r.value(u, p))
		}
		fmt.Fprintln(out)
	}
}

// number writes three significant digits, or two of what is small.
func number(f float64) string {
	switch {
	case f == 0:
		return "0"
	case f < 0.001:
		return "< 0.001"
	case f < 10 && f != math.Trunc(f):
		return strconv.FormatFloat(f, 'f', max(0, 1-int(math.Floor(math.Log10(f)))), 64)
	}
	unit := math.Pow(10, max(0, math.Floor(math.Log10(f))-2))
	digits := strconv.FormatFloat(math.Round(f/unit)*unit, 'f', 0, 64)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + " " + digits[i:]
	}
	return digits
}

func percent(f float64) string { return number(100*f) + " %" }

func size(f float64) string {
	for _, unit := range []string{"B", "kB", "MB", "GB"} {
		if f < 1000 {
			return number(f) + " " + unit
		}
		f /= 1000
	}
	return number(f) + " TB"
}

func seconds(f float64) string {
	switch {
	case f < 1e-6:
		return number(f*1e9) + " ns"
	case f < 1e-3:
		return number(f*1e6) + " us"
	case f < 1:
		return number(f*1e3) + " ms"
	}
	return number(f) + " s"
}

// days reads "365d", or a duration as Go writes it.
func days(set *flag.FlagSet, p *float64, name, usage string) {
	set.Func(name, usage, func(s string) error {
		if n, ok := strings.CutSuffix(s, "d"); ok {
			var err error
			*p, err = strconv.ParseFloat(n, 64)
			return err
		}
		d, err := time.ParseDuration(s)
		*p = d.Hours() / 24
		return err
	})
}

// capacityCommand prints the tables for the numbers of whoever asks.
func capacityCommand(out io.Writer, args []string) error {
	u, p, all := measured(), usual(0), []plan(nil)
	set := flag.NewFlagSet("capacity", flag.ContinueOnError)
	set.Float64Var(&p.devices, "devices", 0, "`number` of devices; default: ten thousand, a million and a hundred million")
	days(set, &p.validity, "validity", "`time` that a certificate is valid, as 365d (default 365d)")
	p.window = 0
	days(set, &p.window, "window", "`time` before its end in which devices renew, spread at random (default a third of -validity)")
	days(set, &p.keep, "keep", "`time` that a record is kept after its certificate has ended (default 90d)")
	set.Float64Var(&p.messages, "messages", p.messages, "`number` of messages for a certificate: 1, and what is sent again")
	set.Float64Var(&p.revoked, "revoked", p.revoked, "`share` of the devices whose certificate is revoked in a year")
	set.Float64Var(&p.asked, "asked", p.asked, "`number` of OCSP questions about a device in a day")
	set.Float64Var(&p.storm, "storm", p.storm, "`hours` in which all devices come, at the worst")
	set.DurationVar(&u.cpu, "cpu", u.cpu, "processor `time` of a replica for one request")
	set.DurationVar(&u.database, "database-cpu", u.database, "processor `time` of PostgreSQL for one certificate")
	set.Float64Var(&u.cores, "cores", u.cores, "`number` of processors of a replica")
	set.Float64Var(&u.load, "load", u.load, "`share` of their time that they may be at work")
	set.Float64Var(&u.commits, "commits", u.commits, "`number` of commits that the database can do in a second")
	set.Float64Var(&u.record, "record", u.record, "`bytes` of a record in PostgreSQL")
	if err := set.Parse(args); err != nil {
		return err
	}
	p.window = cmp.Or(p.window, p.validity/3)
	for _, check := range []struct {
		wrong bool
		text  string
	}{
		{set.NArg() > 0, "takes flags only, no " + strconv.Quote(set.Arg(0))},
		{p.devices < 0, "-devices is 1 or more"},
		{p.validity <= 0, "-validity is more than 0"},
		{p.window < 0 || p.window > p.validity, "-window is from 0 to -validity"},
		{p.messages < 1, "-messages is 1 or more"},
		{p.storm <= 0, "-storm is more than 0"},
		{u.cores <= 0, "-cores is more than 0"},
		{u.load <= 0 || u.load > 1, "-load is more than 0 and at most 1"},
		{u.commits <= 0, "-commits is more than 0"},
	} {
		if check.wrong {
			return fmt.Errorf("capacity: %s", check.text)
		}
	}
	for _, n := range []float64{1e4, 1e6, 1e8} {
		q := p
		q.devices = cmp.Or(p.devices, n)
		if all = append(all, q); p.devices > 0 {
			break
		}
	}
	for _, t := range []struct {
		name string
		rows []row
	}{
		{"Devices spread out evenly", steadyTable()},
		{"All installed on one day, at their first renewal", waveTable()},
		{fmt.Sprintf("All within %s hours", number(p.storm)), stormTable()},
	} {
		fmt.Fprintf(out, "%s:\n\n", t.name)
		writeTable(out, u, t.rows, all...)
		fmt.Fprintln(out)
	}
	return nil
}
